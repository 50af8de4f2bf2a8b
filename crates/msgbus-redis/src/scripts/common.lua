-- What all scripts have. KEYS[1] is the hash that describes the topic, KEYS[2] its stream.
--
-- Fields of the hash: "epoch"; "last", the number of the last message; "run", since when the server ran that has given it;
-- "jumps"; "time", that of the last message, in milliseconds; "secret", for the keys of leases; "check", when to tend
-- it; "group:NAME", a secret of each group; "run:NAME", the run in which it was last given messages.

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

-- What a list of names and values says.
local function named(list)
  local found = {}
  for index = 1, #list, 2 do
    found[list[index]] = list[index + 1]
  end
  return found
end

-- After a restart, or on another server, messages may be gone that somebody has seen. Their numbers must not be given
-- again, also if the numbers that the last run had begun with are gone, too. So the numbers of a run begin at one that comes
-- from its time: no topic gets a thousand messages in each millisecond. Between the last message and that number there are
-- none, which the list of jumps says, with "s" if it is certain that none is gone, and else "u".
local FIRST_TIME = 1600000000000
-- If the clock was set back.
local JUMP = 1000000000
local MAX_JUMPS = 32

-- Leaves out the numbers before `target`.
local function skip_to(topic, target, certainty)
  topic.jumps = topic.jumps .. text(topic.last + 1) .. '-' .. text(target) .. certainty .. ' '
  local _, count = string.gsub(topic.jumps, ' ', ' ')
  if count > MAX_JUMPS then
    topic.jumps = string.gsub(topic.jumps, '^%S+ ', '')
  end
  topic.last = target - 1
end

-- `run` has two times: since when the server runs that it is now, and that of the last one that may have lost messages at its
-- start. Empty if that is not known.
local function jump(topic, run)
  local since, unsafe = string.match(run, '^(%d+):(%d+)$')
  if not since or tonumber(topic.run) >= tonumber(since) then
    return
  end
  local certainty = tonumber(topic.run) >= tonumber(unsafe) and 's' or 'u'
  topic.run, topic.has_jumped = since, true
  local target = (tonumber(since) - FIRST_TIME) * 1000 + 1
  if target <= topic.last then
    target = topic.last + JUMP
  end
  skip_to(topic, target, certainty)
end

-- What is known of the topic as it is now in this run of the server. Nothing is written.
local function load(run)
  local found = redis.call('HMGET', KEYS[1], 'epoch', 'last', 'run', 'jumps', 'time', 'secret', 'check')
  if not found[1] then
    return nil
  end
  local topic = {
    epoch = found[1], last = tonumber(found[2]), run = found[3], jumps = found[4], time = tonumber(found[5]),
    secret = found[6], check = tonumber(found[7]), is_new = found[2] == '0',
  }
  jump(topic, run)
  return topic
end

-- A message is a list of fields: "t", when it was published; "x", when it expires, if it has a TTL of its own; "h", its
-- headers, if there are any; "p", the payload, is the last. What has no time was added by somebody else, and is no message.
local function time_of(fields)
  return fields[1] == 't' and tonumber(fields[2]) or nil
end

local function size(fields)
  return #fields[#fields]
end

-- The number of the first message that was published at this time or later, or an earlier one, if there is something that is
-- no message.
local function seek(topic, time)
  local head = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  if not head then
    return topic.last + 1
  end
  local low, high = number_of(head[1]), topic.last + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    local found = redis.call('XRANGE', KEYS[2], id_of(topic, middle), '+', 'COUNT', 1)[1]
    if not found or (time_of(found[2]) or time) >= time then
      high = middle
    else
      low = number_of(found[1]) + 1
    end
  end
  return low
end

local function has_expired(fields, time, max_age)
  local published = time_of(fields)
  if not published or (max_age > 0 and published + max_age <= time) then
    return true
  end
  return fields[3] == 'x' and tonumber(fields[4]) <= time
end
