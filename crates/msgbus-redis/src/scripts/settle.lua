-- Settles leases. Returns the time, and the indices of those that are over.
local group, settlement, duration = ARGV[1], ARGV[2], tonumber(ARGV[3])

local time = now()
local topic = load('')
local group_secret = topic and redis.call('HGET', KEYS[1], 'group:' .. group)

local function settle(key)
  local number, deliveries, shown = string.match(key, '^(%d+)%-(%d+)%-(%x+)$')
  if not group_secret or not number then
    return false
  end
  local id = topic.epoch .. '-' .. number
  local given = pending(group, id)
  -- The message was given again, given back, or is done.
  if not given or string.sub(given.consumer, 1, #LEASED) ~= LEASED or text(given.deliveries) ~= deliveries then
    return false
  end
  if shown ~= code(topic, group_secret, group, given.consumer, number, deliveries) then
    return false
  end
  if settlement == 'ack' then
    finish(group, id, number)
    return true
  end
  local ends = redis.call('ZSCORE', KEYS[3], number)
  if not ends or tonumber(ends) <= time then
    return false
  end
  if settlement == 'nack' then
    claim(group, WAITING, id, deliveries)
  end
  redis.call('ZADD', KEYS[3], text(time + duration), number)
  return true
end

if settlement == 'nack' then
  -- Somebody may wait for it. Nobody looks before the end of this.
  redis.call('SPUBLISH', ARGV[4], '')
end
local lost = {}
for index = 5, #ARGV do
  if not settle(ARGV[index]) then
    lost[#lost + 1] = index - 5
  end
end
return { text(time), lost }
