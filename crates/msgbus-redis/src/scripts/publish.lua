-- Publishes messages, all or none. KEYS[3] and on: the idempotency keys. ARGV[9] has a digit for each message, the sum of
-- what it has: 1 for such a key, 2 for a TTL in milliseconds, 4 for headers. For each message, these two and its payload follow.
local run, secret, channel = ARGV[1], ARGV[2], ARGV[3]
local max_messages, max_age, keep_for, remember = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local is_told, shapes = ARGV[8] == '1', ARGV[9]
local has_keys = #KEYS > 2
local call, may = redis.call, redis.acl_check_cmd

-- What a script has done is not taken back, so nothing may be refused in its middle.
if not (may('XADD', KEYS[2], '*', 'p', '') and may('HSET', KEYS[1], 'a', '') and may('SPUBLISH', channel, '')
    and may('PEXPIRE', KEYS[1], 1) and may('XTRIM', KEYS[2], 'MAXLEN', 0)
    and (not has_keys or may('SET', KEYS[3], ''))) then
  return redis.error_reply('NOPERM the user may not publish messages')
end

local topic = load(run) or create(run, secret)
local time = math.max(now(), topic.time)

-- The numbers of messages that were published before.
local known, repeats, first = {}, 0, topic.last + 1
if has_keys then
  local deleted, key = tonumber(call('HGET', KEYS[1], 'deleted') or '0'), 2
  for index = 1, #shapes do
    if string.byte(shapes, index) % 2 == 1 then
      key = key + 1
      local id = call('GET', KEYS[key])
      local number = id and string.match(id, '^%d+') == topic.epoch and number_of(id)
      if number and number > deleted then
        known[index], repeats, first = number, repeats + 1, math.min(first, number)
      end
    end
  end
end

-- There are as many ways to call it as kinds of messages: to make a list of arguments takes about as long as the call.
local published, attempt = text(time), redis.pcall
local function add(id, ttl, headers, payload)
  if not ttl and not headers then
    return attempt('XADD', KEYS[2], id, 't', published, 'p', payload)
  elseif not ttl then
    return attempt('XADD', KEYS[2], id, 't', published, 'h', headers, 'p', payload)
  end
  local expires = text(time + tonumber(ttl))
  if not headers then
    return attempt('XADD', KEYS[2], id, 't', published, 'x', expires, 'p', payload)
  end
  return attempt('XADD', KEYS[2], id, 't', published, 'x', expires, 'h', headers, 'p', payload)
end

-- Returns the error of the first, if Redis does not accept it. Then nothing is done.
local function add_all()
  -- Redis counts on from the first.
  local id, following = id_of(topic, topic.last + 1), topic.epoch .. '-*'
  local key, at = 2, 10
  for index = 1, #shapes do
    local shape, name, ttl, headers = string.byte(shapes, index) - 48, nil, nil, nil
    if shape % 2 == 1 then
      key = key + 1
      name = KEYS[key]
    end
    if shape % 4 >= 2 then
      ttl, at = ARGV[at], at + 1
    end
    if shape >= 4 then
      headers, at = ARGV[at], at + 1
    end
    if not known[index] then
      local given = add(id, ttl, headers, ARGV[at])
      if given.err then
        return given
      end
      if name then
        call('SET', name, given, 'PX', remember)
      end
      id, attempt = following, call
    end
    at = at + 1
  end
end

-- Says that there is something new, or what, to those who listen. Nobody listens at replicas.
local function tell()
  redis.set_repl(redis.REPL_NONE)
  if not is_told or repeats > 0 then
    call('SPUBLISH', channel, '')
  elseif call('SPUBLISH', channel, '+') > 0 then
    call('SPUBLISH', channel, cmsgpack.pack(topic.epoch, text(first), published, unpack(ARGV, 9)))
  end
  redis.set_repl(redis.REPL_ALL)
end

-- Somebody else has added to the stream, or set its last id, so that it has no place for the next message. Numbers go on after
-- that, and followers are told that something may be missing. In a higher epoch they could not, nor beyond the digits that Lua
-- has: the topic begins anew.
local MAX_NUMBER = 2 ^ 52
local function make_place()
  local top = named(call('XINFO', 'STREAM', KEYS[2]))['last-generated-id']
  local epoch, number = string.match(top, '^(%d+)%-(%d+)$')
  if epoch == topic.epoch and tonumber(number) < MAX_NUMBER then
    skip_to(topic, math.max(tonumber(number), topic.last) + 1, 'u')
    call('HSET', KEYS[1], 'last', text(topic.last), 'run', topic.run, 'jumps', topic.jumps, 'check', '0')
  elseif string.format('%20s', epoch) >= string.format('%20s', topic.epoch) then
    create(run, secret)
  end
end

local added = #shapes - repeats
local last = topic.last + added
if added > 0 then
  local failure = add_all()
  if failure then
    make_place()
    return redis.error_reply('CHANGED somebody else has changed ' .. KEYS[2] .. ': ' .. failure.err)
  end
  call('HSET', KEYS[1], 'last', text(last), 'time', published)
  if topic.has_jumped then
    call('HSET', KEYS[1], 'run', topic.run, 'jumps', topic.jumps)
  end
  tell()
  topic.last = last
  local length, most = call('XLEN', KEYS[2]), tonumber(max_messages) or math.huge
  if most < 1000 and length > most then
    call('XTRIM', KEYS[2], 'MAXLEN', max_messages)
  elseif length >= most + 100 then
    -- To remove single messages costs more than to remove a hundred at a time. Without a limit, as many as there are.
    call('XTRIM', KEYS[2], 'MAXLEN', '~', max_messages, 'LIMIT', 0)
  end
  -- This has made the stream: it is the first message, or somebody has deleted the others.
  if topic.is_new or length == added then
    topic.is_new, topic.check = false, 0
  end
  tend(topic, time, max_age, keep_for)
else
  -- A command that waits for replicas waits for what this connection has written.
  keep(topic, keep_for, max_age)
  last = 0
  for _, number in pairs(known) do
    last = math.max(last, number)
  end
end
return { topic.epoch, text(first), text(last) }
