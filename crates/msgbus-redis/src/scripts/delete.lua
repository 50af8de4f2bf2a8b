-- Removes all messages. Numbers go on, and groups stay. Returns how many there were. An idempotency key of a message that is
-- removed is no longer one.
local last = redis.call('HGET', KEYS[1], 'last')
if last then
  redis.call('HSET', KEYS[1], 'deleted', last)
end
return redis.call('XTRIM', KEYS[2], 'MAXLEN', 0)
