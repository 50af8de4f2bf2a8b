-- What is known of a topic, without what has expired.
local run, max_age = ARGV[1], tonumber(ARGV[2])
local topic = load(run)
if not topic then
  return {}
end
purge(topic, now(), max_age)
local head = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
if not head then
  return {}
end
local retained = redis.call('XLEN', KEYS[2])
return { topic.epoch, text(retained), text(number_of(head[1])), text(topic.last + 1) }
