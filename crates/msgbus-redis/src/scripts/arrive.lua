-- Notes which run of which server this is. KEYS[1] is a hash for all topics: "run"; "since", when it began; "unsafe", the
-- same of the last one that may have lost messages at its start; "safe", whether this one may not lose any. Returns since when
-- the server is what it is, and "unsafe".
local run, is_safe = ARGV[1], ARGV[2] == '1'
local known = redis.call('HMGET', KEYS[1], 'run', 'since', 'unsafe', 'safe')
local since, unsafe, was_safe = tonumber(known[2] or 0), tonumber(known[3] or 0), known[4] == '1'
if known[1] ~= run then
  local time = redis.call('TIME')
  since = math.max(time[1] * 1000 + math.floor(time[2] / 1000), since + 1)
  -- This run has what the one before has acknowledged, if that has had everything on the disk from which this one has read it.
  if not (was_safe and is_safe) then
    unsafe = since
  end
  redis.call('HSET', KEYS[1], 'run', run, 'since', string.format('%.0f', since), 'unsafe', string.format('%.0f', unsafe),
    'safe', is_safe and '1' or '0')
elseif was_safe and not is_safe then
  redis.call('HSET', KEYS[1], 'safe', '0')
end
return string.format('%.0f:%.0f', since, unsafe)
