-- What scripts have that are about groups. KEYS[3] is a sorted set of the messages that the group was given, by the time
-- at which they are given again: the end of a lease, or of a delay.

-- The consumers of a group: those of leases, one for each run of the server, and that of messages that wait to be given
-- again. A lease that was given before messages were lost is not one that was given after it.
local LEASED = 'leased:'
local WAITING = 'waiting'

-- Proves that whoever shows it was given the lease.
local function code(topic, group_secret, group, consumer, number, deliveries)
  local lease = table.concat({ topic.epoch, group, consumer, number, deliveries }, '/')
  local inner = redis.sha1hex(topic.secret .. group_secret .. lease)
  return string.sub(redis.sha1hex(topic.secret .. inner), 1, 32)
end

-- Whether the group was given a message and has not acknowledged it: the consumer that has it, and how often it was given.
local function pending(group, id)
  local found = redis.pcall('XPENDING', KEYS[2], group, id, id, 1)
  if found.err then
    if string.find(found.err, 'NOGROUP', 1, true) then
      return nil
    end
    error(found)
  end
  return found[1] and { consumer = found[1][2], deliveries = found[1][4] }
end

local function claim(group, consumer, id, deliveries)
  redis.call('XCLAIM', KEYS[2], group, consumer, 0, id, 'RETRYCOUNT', deliveries, 'JUSTID')
end

local function finish(group, id, number)
  redis.call('XACK', KEYS[2], group, id)
  redis.call('ZREM', KEYS[3], number)
end
