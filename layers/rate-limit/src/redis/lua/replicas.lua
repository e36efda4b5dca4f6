-- Says that a process is there, and how many are: those that have said so within the span.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local span = ARGV[2] * 1
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - span)
redis.call('ZREMRANGEBYSCORE', KEYS[1], now + 1, '+inf')
redis.call('PEXPIRE', KEYS[1], math.ceil(span / 1000))
return redis.call('ZCARD', KEYS[1])
