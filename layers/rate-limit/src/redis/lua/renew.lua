-- Keeps places in flight that are still held; one that was freed meanwhile stays free.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local places, cursor = ARGV[1], 1
while cursor <= #places do
    local ticket, count, after = struct.unpack('<c8d', places, cursor)
    cursor = after
    try('ZADD', KEYS[1], 'XX', now + HOLD, ticket)
    for place = 2, count do
        try('ZADD', KEYS[1], 'XX', now + HOLD, ticket .. struct.pack('<d', place))
    end
end
redis.call('PEXPIRE', KEYS[1], HOLD / 1000)
return 1
