-- Makes a topic that is not there, so that it has an epoch.
local run, secret, keep_for = ARGV[1], ARGV[2], tonumber(ARGV[3])
local topic = load(run)
if not topic then
  topic = create(run, secret)
  keep(topic, keep_for, 0)
end
return { topic.epoch, text(topic.last + 1) }
