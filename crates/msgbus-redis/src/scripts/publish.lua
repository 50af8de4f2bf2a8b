-- Publishes messages, all or none. KEYS[3] and on: the idempotency keys. For each message there are four arguments: whether
-- it has such a key, its TTL in milliseconds, its headers, its payload.
local run, secret, channel = ARGV[1], ARGV[2], ARGV[3]
local max_messages, max_age, keep_for, remember = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]

-- What a script has done is not taken back, so nothing may be refused in its middle.
if not (redis.acl_check_cmd('XADD', KEYS[2], '*', 'p', '') and redis.acl_check_cmd('HSET', KEYS[1], 'a', '')
    and redis.acl_check_cmd('PEXPIRE', KEYS[1], 1) and redis.acl_check_cmd('SPUBLISH', channel, '')
    and redis.acl_check_cmd('SET', KEYS[3] or KEYS[1], '')) then
  return redis.error_reply('NOPERM the user may not publish messages')
end

local topic = load(run) or create(run, secret)
local time = math.max(now(), topic.time)
local before, key, first, last = topic.last, 2, nil, nil

-- Those that are new, as they are added below.
local new = {}
for index = 8, #ARGV, 4 do
  local known, name = nil, nil
  if ARGV[index] == '1' then
    key = key + 1
    name = KEYS[key]
    local id = redis.call('GET', name)
    if id and string.match(id, '^%d+') == topic.epoch then
      local deleted = tonumber(redis.call('HGET', KEYS[1], 'deleted') or '0')
      known = number_of(id)
      known = known > deleted and known or nil
    end
  end
  if not known then
    topic.last = topic.last + 1
    known = topic.last
    new[#new + 1] = { number = known, key = name, at = index }
  end
  first, last = math.min(first or known, known), math.max(last or known, known)
end

-- To remove single messages costs more than to remove a hundred at a time.
local trim = (tonumber(max_messages) or 0) < 1000 and '=' or '~'
local published = text(time)

local function add(message)
  local ttl, headers, payload = ARGV[message.at + 1], ARGV[message.at + 2], ARGV[message.at + 3]
  local id = id_of(topic, message.number)
  local command = { 'XADD', KEYS[2] }
  if max_messages ~= '' then
    command[3], command[4], command[5] = 'MAXLEN', trim, max_messages
  end
  local count = #command
  command[count + 1], command[count + 2], command[count + 3] = id, 't', published
  count = count + 3
  if ttl ~= '' then
    command[count + 1], command[count + 2] = 'x', text(time + tonumber(ttl))
    count = count + 2
  end
  if headers ~= '' then
    command[count + 1], command[count + 2] = 'h', headers
    count = count + 2
  end
  command[count + 1], command[count + 2] = 'p', payload
  redis.call(unpack(command))
  if message.key then
    redis.call('SET', message.key, id, 'PX', remember)
  end
end

if topic.last > before then
  redis.call('SPUBLISH', channel, text(topic.last))
  redis.call('HSET', KEYS[1], 'last', text(topic.last), 'run', topic.run, 'jumps', topic.jumps, 'time', published)
  for _, message in ipairs(new) do
    add(message)
  end
  topic.is_new = false
  purge(topic, time, max_age)
end
-- Also when nothing is new: a command that waits for replicas waits for what this connection has written.
keep(topic, keep_for, max_age)
return { topic.epoch, text(first), text(last) }
