-- Shows, sets or removes a group. Returns whether there was one, and what it has before it and in hand, or what it has not
-- acknowledged.
local action, run, secret, group, group_secret = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local begin, value, keep_for, max_age, channel = ARGV[6], ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10]

local topic = load(run)
local exists = topic and redis.call('HEXISTS', KEYS[1], 'group:' .. group) == 1

-- How many messages there are with numbers in from..to. None is missing but those of jumps.
local function count(from, to)
  local all = math.max(to - from, 0)
  for first, next_one in string.gmatch(topic.jumps, '(%d+)%-(%d+)') do
    all = all - math.max(math.min(tonumber(next_one), to) - math.max(tonumber(first), from), 0)
  end
  return all
end

-- The number of the first message that the group was not given.
local function next_number()
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
    local found = named(info)
    if found['name'] == group then
      return number_of(found['last-delivered-id']) + 1
    end
  end
  return topic.last + 1
end

-- How many messages the group was not given.
local function pending_messages()
  local head = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  return head and count(math.max(next_number(), number_of(head[1])), topic.last + 1) or 0
end

if action == 'show' then
  if not exists or redis.call('EXISTS', KEYS[2]) == 0 then
    return { exists and '1' or '0', '0', '0', own(group) }
  end
  return { '1', text(pending_messages()), text(redis.call('XPENDING', KEYS[2], group)[1]), own(group) }
end
if action == 'unsettled' then
  if not exists or redis.call('EXISTS', KEYS[2]) == 0 then
    return { '0' }
  end
  local given = {}
  for _, message in ipairs(redis.call('XPENDING', KEYS[2], group, '-', '+', value)) do
    given[#given + 1] = text(number_of(message[1]))
  end
  return { '1', text(next_number()), given }
end
if action == 'change' then
  for index, name in ipairs(OWN) do
    if exists and ARGV[10 + index] ~= '' then
      redis.call('HSET', KEYS[1], name .. group, ARGV[10 + index])
    end
  end
  return { exists and '1' or '0' }
end
if action == 'remove' then
  if exists then
    redis.pcall('XGROUP', 'DESTROY', KEYS[2], group)
    redis.call('DEL', KEYS[3])
    redis.call('HDEL', KEYS[1], 'group:' .. group, 'run:' .. group, OWN[1] .. group, OWN[2] .. group)
  end
elseif not exists or begin ~= '' then
  local refusal = not exists and too_many_groups(group)
  if refusal then
    return refusal
  end
  -- Its workers may wait.
  redis.call('SPUBLISH', channel, '')
  topic = topic or create(run, secret)
  create_group(topic, group, group_secret, start_of(topic, begin, value), keep_for, max_age)
end
return { exists and '1' or '0' }
