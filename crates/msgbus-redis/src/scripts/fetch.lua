-- Leases messages to a worker of a group.
local run, secret, group, group_secret = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local begin, value = ARGV[5], ARGV[6]
local lease, limit, max_bytes = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local max_age, keep_for = tonumber(ARGV[10]), tonumber(ARGV[11])

local time = now()
local topic = load(run)
if not topic then
  if begin == 'first' then
    return { text(time), '1', '', {}, '0', { '', '' } }
  end
  topic = create(run, secret)
end

-- Of messages that were given, it may have been lost when they are given again.
local function recover()
  if redis.call('EXISTS', KEYS[3]) == 1 then
    return
  end
  local from = '-'
  repeat
    local given = redis.call('XPENDING', KEYS[2], group, from, '+', 1000)
    for _, message in ipairs(given) do
      redis.call('ZADD', KEYS[3], text(time + lease), text(number_of(message[1])))
      from = '(' .. message[1]
    end
  until #given < 1000
end

local consumer = LEASED .. topic.run

-- Removes the consumers of other runs that have no leases any more.
local function remove_consumers()
  for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[2], group)) do
    local found = named(info)
    local is_old = string.sub(found['name'], 1, #LEASED) == LEASED and found['name'] ~= consumer
    if is_old and found['pending'] == 0 then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[2], group, found['name'])
    end
  end
end

local known = redis.call('HMGET', KEYS[1], 'group:' .. group, 'run:' .. group)
if known[1] then
  group_secret = known[1]
else
  local refusal = too_many_groups(group)
  if refusal then
    return refusal
  end
  create_group(topic, group, group_secret, start_of(topic, begin, value), keep_for, max_age)
end

-- How many more messages are looked at: those that are gone or have expired are not leased.
local looks = 1000
local leases, bytes = {}, 0
local function give(number, deliveries, fields)
  redis.call('ZADD', KEYS[3], text(time + lease), number)
  local key = number .. '-' .. deliveries .. '-' .. code(topic, group_secret, group, consumer, number, deliveries)
  leases[#leases + 1] = { number, deliveries, key, fields }
  bytes = bytes + size(fields)
end

local function is_full()
  return #leases >= limit or bytes >= max_bytes or looks <= 0
end

-- The stream may be gone, with all that there was. What is new, the group was not given.
local function with_group(command)
  local answer = redis.pcall(unpack(command))
  if answer and answer.err and string.find(answer.err, 'NOGROUP', 1, true) then
    create_group(topic, group, group_secret, '0-0', keep_for, max_age)
    answer = redis.pcall(unpack(command))
  end
  if answer and answer.err then
    error(answer)
  end
  return answer
end

local function give_again()
  local due = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', text(time), 'LIMIT', 0, math.min(limit, looks))
  for _, number in ipairs(due) do
    if is_full() then
      return false
    end
    looks = looks - 1
    local id = topic.epoch .. '-' .. number
    local message = redis.call('XRANGE', KEYS[2], id, id)[1]
    local given = pending(group, id)
    if message and given and not has_expired(message[2], time, max_age) then
      local deliveries = given.deliveries + 1
      claim(group, consumer, id, deliveries)
      give(number, deliveries, message[2])
    else
      finish(group, id, number)
    end
  end
  return #due > 0
end

tend(topic, time, max_age, keep_for)
-- Makes the group if it is gone.
with_group({ 'XPENDING', KEYS[2], group })
recover()
if known[2] ~= topic.run then
  remove_consumers()
  redis.call('HSET', KEYS[1], 'run:' .. group, topic.run)
end
while not is_full() and give_again() do
end
local is_last = false
while not is_full() and not is_last do
  local read = with_group({ 'XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS', KEYS[2], '>' })
  local message = read and read[1][2][1]
  looks = looks - 1
  if not message then
    is_last = true
  elseif has_expired(message[2], time, max_age) then
    redis.call('XACK', KEYS[2], group, message[1])
  else
    give(text(number_of(message[1])), 1, message[2])
  end
end

redis.call('PEXPIRE', KEYS[3], keep_for)
local next_due = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
return { text(time), topic.epoch, next_due or '', leases, (looks <= 0) and '1' or '0', own(group) }
