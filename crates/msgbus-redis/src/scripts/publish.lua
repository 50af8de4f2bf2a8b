-- Publishes messages, all or none. KEYS[3] and on: the idempotency keys. For each message there are four arguments: whether
-- it has such a key, its TTL in milliseconds, its headers, its payload.
local run, secret, channel = ARGV[1], ARGV[2], ARGV[3]
local max_messages, max_age, keep_for, remember = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]

local topic = load(run) or create(run, secret)
local time = math.max(now(), topic.time)
local before, key, first, last = topic.last, 2, nil, nil

local function add(ttl, headers, payload)
  topic.last = topic.last + 1
  local id = id_of(topic, topic.last)
  local command = { 'XADD', KEYS[2] }
  local function push(...)
    for _, word in ipairs({ ... }) do
      command[#command + 1] = word
    end
  end
  if max_messages ~= '' then
    -- To remove single messages costs more than to remove a hundred at a time.
    push('MAXLEN', tonumber(max_messages) < 1000 and '=' or '~', max_messages)
  end
  push(id, 't', text(time))
  if ttl ~= '' then
    push('x', text(time + tonumber(ttl)))
  end
  if headers ~= '' then
    push('h', headers)
  end
  push('p', payload)
  redis.call(unpack(command))
  return id
end

for index = 8, #ARGV, 4 do
  local known = nil
  if ARGV[index] == '1' then
    key = key + 1
    local id = redis.call('GET', KEYS[key])
    if id and string.match(id, '^%d+') == topic.epoch then
      known = number_of(id)
    end
  end
  if not known then
    local id = add(ARGV[index + 1], ARGV[index + 2], ARGV[index + 3])
    known = topic.last
    if ARGV[index] == '1' then
      redis.call('SET', KEYS[key], id, 'PX', remember)
    end
  end
  first, last = math.min(first or known, known), math.max(last or known, known)
end

if topic.last > before then
  redis.call('HSET', KEYS[1], 'last', text(topic.last), 'run', topic.run, 'jumps', topic.jumps, 'time', text(time))
  purge(topic, time, max_age)
  keep(topic, keep_for, max_age)
  redis.call('SPUBLISH', channel, text(topic.last))
end
return { topic.epoch, text(first), text(last) }
