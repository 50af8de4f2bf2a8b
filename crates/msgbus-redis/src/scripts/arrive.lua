-- Notes which run of which server this is. KEYS[1] is a hash for all topics. Returns since when the server is what it is,
-- and the same of the last one that may have lost messages at its start.
local run, is_safe = ARGV[1], ARGV[2]
local known = redis.call('HMGET', KEYS[1], 'run', 'since', 'unsafe')
local since, unsafe = tonumber(known[2] or 0), tonumber(known[3] or 0)
if known[1] ~= run then
  local time = redis.call('TIME')
  since = math.max(time[1] * 1000 + math.floor(time[2] / 1000), since + 1)
  if is_safe ~= '1' then
    unsafe = since
  end
  redis.call('HSET', KEYS[1], 'run', run, 'since', string.format('%.0f', since), 'unsafe', string.format('%.0f', unsafe))
end
return string.format('%.0f:%.0f', since, unsafe)
