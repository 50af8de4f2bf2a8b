-- Leases messages to a worker of a group.
local run, secret, group, group_secret = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local begin, value = ARGV[5], ARGV[6]
local lease, limit, max_bytes = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local max_age, keep_for = tonumber(ARGV[10]), tonumber(ARGV[11])

local time = now()
local topic = load(run)
if not topic then
  if begin == 'first' then
    return { text(time), '1', '', {} }
  end
  topic = create(run, secret)
end

-- Messages that were given, and whose times are not known, are given again.
local function recover()
  if redis.call('EXISTS', KEYS[3]) == 1 then
    return
  end
  local given = redis.call('XPENDING', KEYS[2], group, '-', '+', 1000)
  for _, message in ipairs(given) do
    redis.call('ZADD', KEYS[3], text(time), text(number_of(message[1])))
  end
end

local known = redis.call('HGET', KEYS[1], 'group:' .. group)
if known then
  group_secret = known
else
  create_group(topic, group, group_secret, start_of(topic, begin, value), keep_for, max_age)
end

local leases, bytes = {}, 0
local function give(number, deliveries, fields)
  redis.call('ZADD', KEYS[3], text(time + lease), number)
  local key = number .. '-' .. deliveries .. '-' .. code(topic, group_secret, group, number, deliveries)
  leases[#leases + 1] = { number, deliveries, key, fields }
  bytes = bytes + size(fields)
end

local function next_message()
  local read = redis.pcall('XREADGROUP', 'GROUP', group, LEASED, 'COUNT', 1, 'STREAMS', KEYS[2], '>')
  if read and read.err then
    if not string.find(read.err, 'NOGROUP', 1, true) then
      error(read)
    end
    -- The stream is gone, with all that there was. What is new, the group was not given.
    create_group(topic, group, group_secret, '0-0', keep_for, max_age)
    return next_message()
  end
  return read and read[1][2][1]
end

purge(topic, time, max_age)
recover()
local due = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', text(time), 'LIMIT', 0, limit)
for _, number in ipairs(due) do
  if bytes >= max_bytes then
    break
  end
  local id = topic.epoch .. '-' .. number
  local message = redis.call('XRANGE', KEYS[2], id, id)[1]
  local given = pending(group, id)
  if message and given and not has_expired(message[2], time, max_age) then
    local deliveries = given.deliveries + 1
    claim(group, LEASED, id, deliveries)
    give(number, deliveries, message[2])
  else
    finish(group, id, number)
  end
end
while #leases < limit and bytes < max_bytes do
  local message = next_message()
  if not message then
    break
  end
  if has_expired(message[2], time, max_age) then
    redis.call('XACK', KEYS[2], group, message[1])
  else
    give(text(number_of(message[1])), 1, message[2])
  end
end

redis.call('PEXPIRE', KEYS[3], keep_for)
keep(topic, keep_for, max_age)
local next_due = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
return { text(time), topic.epoch, next_due or '', leases }
