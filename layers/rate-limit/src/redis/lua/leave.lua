-- No more of this process.
return redis.call('ZREM', KEYS[1], ARGV[1])
