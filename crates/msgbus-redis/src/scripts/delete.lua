-- Removes all messages. Numbers go on, and groups stay. Returns how many there were.
return redis.call('XTRIM', KEYS[2], 'MAXLEN', 0)
