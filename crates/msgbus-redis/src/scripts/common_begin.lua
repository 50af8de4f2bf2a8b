-- What scripts have that create groups.

-- The last message that a new group does not get.
local function start_of(topic, begin, value)
  local start = 0
  if begin == 'next' then
    start = topic.last
  elseif begin == 'number' then
    start = math.min(math.max(tonumber(value) - 1, 0), topic.last)
  elseif begin == 'time' then
    start = seek(topic, tonumber(value)) - 1
  end
  return start == 0 and '0-0' or id_of(topic, start)
end

-- How the fields begin that have what a group has of its own: after how many deliveries a message is a dead letter, and the
-- topic of dead letters.
local OWN = { 'max_deliveries:', 'dead_letters:' }

local function own(group)
  local found = redis.call('HMGET', KEYS[1], OWN[1] .. group, OWN[2] .. group)
  return { found[1] or '', found[2] or '' }
end

-- The maximum number of groups of a topic that have a name, and how their fields begin.
local MAX_GROUPS = 64
local NAMED = 'group:group:'

-- Refuses a group that is new, when there are as many as there may be.
local function too_many_groups(group)
  local count = 0
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    count = count + (string.sub(field, 1, #NAMED) == NAMED and 1 or 0)
  end
  if count >= MAX_GROUPS and string.sub('group:' .. group, 1, #NAMED) == NAMED then
    return redis.error_reply('TOOMANYGROUPS the topic has ' .. MAX_GROUPS .. ' groups')
  end
end

-- Creates a group, in place of one that may be there. The leases of that are over, because the secret is another one.
local function create_group(topic, group, group_secret, start, keep_for, max_age)
  redis.pcall('XGROUP', 'DESTROY', KEYS[2], group)
  redis.call('XGROUP', 'CREATE', KEYS[2], group, start, 'MKSTREAM')
  redis.call('DEL', KEYS[3])
  redis.call('HSET', KEYS[1], 'group:' .. group, group_secret)
  keep(topic, keep_for, max_age)
end
