-- What keys hold. All numbers are integers below 2^53, so that a double keeps them exactly; times are microseconds.
-- A key whose time lies ahead of now was written before the clock stepped back: it moves to now with what was used.
-- A key that others have written to holds nothing, and is replaced by what is taken from it: an error would be one for
-- all who are decided together, some of whom have been written down already.
local encode, decode, floor, ceil, call = struct.pack, struct.unpack, math.floor, math.ceil, redis.call
local try = redis.pcall

-- What a key holds, if that is three numbers.
local function get(key)
    local value = try('GET', key)
    if type(value) == 'string' and #value == 24 then return value end
    return false
end

local BUCKET, FIXED, SLIDING, LOG, IN_FLIGHT = 1, 2, 3, 4, 5
local MOST = 2 ^ 53
local HOLD = 30000000 -- a place in flight that nobody renews

-- Nanoseconds until the bucket is full, when it was drained, and whether the key has to be moved.
local function bucket(held, capacity, now)
    if not held then return 0, 0, false end
    local last, level, drained = decode('<ddd', held)
    if not (last <= MOST and level >= 0 and level <= MOST and drained <= MOST) then return 0, 0, false end
    if level > capacity then level = capacity end
    if last > now then return level, drained, true end
    level = level - (now - last) * 1000
    if level < 0 then level = 0 end
    return level, drained, false
end

-- When the window of now began, what was used in it and in the one before, and whether the key has to be moved.
local function windows(held, window, now)
    local start = now - now % window
    if not held then return start, 0, 0, false end
    local at, used, before = decode('<ddd', held)
    if not (at <= MOST and used >= 0 and used <= MOST and before >= 0 and before <= MOST) then
        return start, 0, 0, false
    end
    if at == start then return start, used, before, false end
    if at > start then return start, used, before, true end
    if at + window == start then return start, 0, used, false end
    return start, 0, 0, false
end

local function put_bucket(key, level, drained, now)
    local value = encode('<ddd', now, level, drained)
    call('SET', key, value, 'PX', ceil(level / 1000000) + 1)
    return value
end

-- Kept for as long as `lasts` after the window.
local function put_windows(key, start, used, before, window, now, lasts)
    local value = encode('<ddd', start, used, before)
    call('SET', key, value, 'PX', ceil((start + window - now + lasts) / 1000) + 1)
    return value
end

-- What is done with logs; not made for scripts that have none.
local function logs()
    -- What was used, how much had been counted before that, and the newest entry: its time, member and cost.
    -- A member holds what was counted through it and its own cost.
    local function read(key, window, now)
        local newest = try('ZRANGE', key, -1, -1, 'WITHSCORES')
        if newest.err or #newest == 0 or #newest[1] ~= 16 then return 0, 0 end
        local oldest = call('ZRANGEBYSCORE', key, now - window + 1, '+inf', 'LIMIT', 0, 1)
        if #oldest == 0 or #oldest[1] ~= 16 then return 0, 0 end
        local through, cost = decode('<dd', newest[1])
        local first, own = decode('<dd', oldest[1])
        return through - first + own, first - own, tonumber(newest[2]), newest[1], cost
    end

    -- Until `need` of what was counted since `base` has left.
    local function leaves(key, base, need, window, now)
        local low = call('ZCOUNT', key, '-inf', now - window)
        local high = call('ZCARD', key) - 1
        while low < high do
            local middle = floor((low + high) / 2)
            local through = decode('<dd', call('ZRANGE', key, middle, middle)[1])
            if through < base + need then low = middle + 1 else high = middle end
        end
        local at = tonumber(call('ZRANGE', key, low, low, 'WITHSCORES')[2])
        if at > now then at = now end
        return at + window - now
    end

    -- Counts `cost` at now on top of the `used` since `base`, of which the newest entry is told.
    local function put(key, used, base, at, member, own, cost, window, now)
        if used == 0 then
            call('DEL', key)
            base = 0
        else
            call('ZREMRANGEBYSCORE', key, '-inf', now - window)
        end
        local entry = cost
        if at == now then
            call('ZREM', key, member)
            entry = entry + own
        end
        call('ZADD', key, now, encode('<dd', base + used + cost, entry))
        call('PEXPIRE', key, ceil(window / 1000) + 1)
    end

    -- Moves what was counted after now to now.
    local function move(key, window, now)
        local late = call('ZRANGEBYSCORE', key, now, '+inf')
        local first, own = decode('<dd', late[1])
        local through = decode('<dd', late[#late])
        call('ZREMRANGEBYSCORE', key, now, '+inf')
        call('ZADD', key, now, encode('<dd', through, through - first + own))
        call('PEXPIRE', key, ceil(window / 1000) + 1)
    end

    return read, leaves, put, move
end
