-- Reads messages. Returns the time, the epoch, the number of the next message, the jumps, where to read on, and the messages.
local run, begin, value, limit, max_bytes = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
-- How many messages are read at a time, some of which may not be returned.
local CHUNK = 16

local time = now()
local topic = load(run)
if not topic then
  return { text(time) }
end

local at = 0
if begin == 'next' then
  at = topic.last + 1
elseif begin == 'number' then
  at = tonumber(value)
elseif begin == 'time' then
  at = seek(topic, tonumber(value))
end

local messages, bytes = {}, 0
local function read()
  while at <= topic.last do
    local found = redis.call('XRANGE', KEYS[2], id_of(topic, at), id_of(topic, topic.last), 'COUNT', CHUNK)
    for _, message in ipairs(found) do
      if #messages >= limit or bytes >= max_bytes then
        return
      end
      local number = number_of(message[1])
      if time_of(message[2]) then
        messages[#messages + 1] = { text(number), message[2] }
        bytes = bytes + size(message[2])
      end
      at = number + 1
    end
    if #found < CHUNK then
      at = topic.last + 1
    end
  end
end
read()
return { text(time), topic.epoch, text(topic.last + 1), topic.jumps, text(math.min(at, topic.last + 1)), messages }
