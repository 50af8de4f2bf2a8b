-- What all scripts have. KEYS[1] is the hash that describes the topic, KEYS[2] its stream.
--
-- Fields of the hash: "epoch"; "last", the number of the last message; "run", the run of the server that has given it;
-- "jumps"; "time", that of the last message, in milliseconds; "secret", for the keys of leases; "check", when to remove
-- what has expired; "groups", if there are any; "group:NAME", a secret of each.

-- A message has the id EPOCH-NUMBER. The epoch has more digits than a number of Lua.
local function id_of(topic, number)
  return topic.epoch .. '-' .. string.format('%.0f', number)
end

local function number_of(id)
  return tonumber(string.match(id, '-(%d+)$'))
end

local function text(number)
  return string.format('%.0f', number)
end

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- After a restart, or on another server, messages may be gone that somebody has seen. Their numbers must not be given
-- again, so numbers go on at the next multiple of JUMP. From the first of them to that one there are no messages, which
-- the list of jumps says.
local JUMP = 1000000000
local MAX_JUMPS = 32

local function jump(topic, run)
  if run == '' or topic.run == run then
    return
  end
  topic.run = run
  if topic.last == 0 then
    return
  end
  local target = (math.floor(topic.last / JUMP) + 1) * JUMP + 1
  topic.jumps = topic.jumps .. text(topic.last + 1) .. '-' .. text(target) .. ' '
  local _, count = string.gsub(topic.jumps, ' ', ' ')
  if count > MAX_JUMPS then
    topic.jumps = string.gsub(topic.jumps, '^%S+ ', '')
  end
  topic.last = target - 1
end

-- What is known of the topic as it is now in this run of the server. Nothing is written.
local function load(run)
  local found = redis.call('HMGET', KEYS[1], 'epoch', 'last', 'run', 'jumps', 'time', 'secret', 'check', 'groups')
  if not found[1] then
    return nil
  end
  local topic = {
    epoch = found[1], last = tonumber(found[2]), run = found[3], jumps = found[4], time = tonumber(found[5]),
    secret = found[6], check = tonumber(found[7]), groups = found[8],
  }
  jump(topic, run)
  return topic
end

-- The first message, or the number of it, that was published at this time or later.
local function seek(topic, time)
  local head = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  if not head then
    return topic.last + 1
  end
  local low, high = number_of(head[1]), topic.last + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    local found = redis.call('XRANGE', KEYS[2], id_of(topic, middle), '+', 'COUNT', 1)[1]
    if not found or tonumber(found[2][2]) >= time then
      high = middle
    else
      low = number_of(found[1]) + 1
    end
  end
  return low
end

-- A message is a list of fields: "t", when it was published; "x", when it expires, if it has a TTL of its own; "h", its
-- headers, if there are any; "p", the payload, is the last.
local function size(fields)
  return #fields[#fields]
end

local function has_expired(fields, time, max_age)
  if max_age > 0 and tonumber(fields[2]) + max_age <= time then
    return true
  end
  return fields[3] == 'x' and tonumber(fields[4]) <= time
end
