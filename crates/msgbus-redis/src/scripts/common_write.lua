-- What scripts have that write.

local function create(run, secret)
  local time = redis.call('TIME')
  local topic = {
    epoch = time[1] .. string.format('%06d', tonumber(time[2])) .. '000',
    last = 0, run = string.match(run, '^%d+') or '0', jumps = '', time = 0, secret = secret, check = 0,
    is_new = true,
  }
  -- What another epoch has left.
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'epoch', topic.epoch, 'last', '0', 'run', topic.run, 'jumps', '', 'time', '0',
    'secret', secret, 'check', '0', 'deleted', '0')
  return topic
end

-- Removes what has expired.
local function purge(topic, time, max_age)
  if max_age > 0 then
    redis.call('XTRIM', KEYS[2], 'MINID', id_of(topic, seek(topic, time - max_age)))
  end
end

-- How long a topic is kept that never had a message, and how much longer a stream is kept than its messages: as long as a
-- lease may last.
local DAY = 24 * 3600 * 1000

-- A topic that nobody uses is forgotten. Its stream goes when all messages have expired. Groups begin anew then, at what
-- comes next.
local function keep(topic, keep_for, max_age)
  if topic.is_new then
    keep_for = math.min(keep_for, DAY)
  end
  redis.call('PEXPIRE', KEYS[1], keep_for)
  if max_age == 0 then
    redis.call('PEXPIRE', KEYS[2], keep_for)
  else
    redis.call('PEXPIRE', KEYS[2], math.min(max_age + DAY / 2, keep_for))
  end
end

-- Does both once in a while: that costs more than to publish a message. The topic is kept for much longer than until then.
local function tend(topic, time, max_age, keep_for)
  if time < topic.check then
    return
  end
  purge(topic, time, max_age)
  keep(topic, keep_for, max_age)
  topic.check = time + math.min(math.floor((max_age > 0 and max_age or keep_for) / 16), 60000)
  redis.call('HSET', KEYS[1], 'check', text(topic.check))
end
