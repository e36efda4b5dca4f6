-- Corrects what was taken by what was used, drains, and frees places in flight.
local LATER = 1000 -- entries of a log that are rewritten to give an earlier one back

local plans = ARGV[1]
local now, cursor = decode('<d', plans)
if now < 0 then
    local time = call('TIME')
    now = time[1] * 1000000 + time[2]
end

local function give_back(key, cost, at, window)
    if at <= now - window then return end
    local late = try('ZRANGEBYSCORE', key, at, '+inf', 'WITHSCORES', 'LIMIT', 0, LATER + 1)
    if late.err or #late == 0 or #late > 2 * LATER then return end
    for i = 1, #late, 2 do
        if #late[i] ~= 16 then return end
    end
    local kept, newest, given = {}, nil, 0
    for i = 1, #late, 2 do
        local through, entry = decode('<dd', late[i])
        local gives = entry
        if gives > cost - given then gives = cost - given end
        given = given + gives
        if gives < entry then
            newest = late[i + 1]
            kept[#kept + 1], kept[#kept + 2] = newest, encode('<dd', through - given, entry - gives)
        end
    end
    call('ZREMRANGEBYSCORE', key, at, '+inf')
    if newest then
        call('ZADD', key, unpack(kept))
        call('PEXPIRE', key, ceil((tonumber(newest) + window - now) / 1000) + 1)
    end
end

local read, leaves, put_log, move
for i = 1, #KEYS do
    local key = KEYS[i]
    local kind, drains, limit, window, tick, reserved, spent, at, ticket, after =
        decode('<bbddddddc8', plans, cursor)
    cursor = after
    local more = spent - reserved
    if kind == IN_FLIGHT then
        try('ZREM', key, ticket)
        for place = 2, reserved do try('ZREM', key, ticket .. encode('<d', place)) end
    elseif more == 0 and drains == 0 then
        -- As reserved.
    elseif kind == LOG then
        if not read then read, leaves, put_log, move = logs() end
        if more < 0 then
            give_back(key, -more, at, window)
            more = 0
        end
        local used, base, newest, member, own = read(key, window, now)
        if used > 0 and newest > now then
            move(key, window, now)
            used, base, newest, member, own = read(key, window, now)
        end
        if drains == 1 and limit - used > more then more = limit - used end
        if more > 0 then put_log(key, used, base, newest, member, own, more, window, now) end
    elseif kind == BUCKET then
        local capacity = limit * window
        local held = get(key)
        local level, drained = bucket(held, capacity, now)
        if more < 0 and at > drained then
            -- What has refilled since is given back already.
            local passed = now > at and now - at or 0
            local back = -more * window - passed * 1000
            if back > 0 then level = level - back end
            if level < 0 then level = 0 end
        elseif more > 0 then
            level = level + more * window
        end
        if drains == 1 then
            level, drained = capacity, now
        elseif level > capacity then
            level = capacity
        end
        if level > 0 then
            put_bucket(key, level, drained, now)
        elseif held then
            call('DEL', key)
        end
    else
        local held = get(key)
        local start, used, before = windows(held, window, now)
        local taken = at - at % window
        if taken >= start or more > 0 and taken + window < start then
            used = used + more
        elseif taken + window == start then
            if kind == SLIDING then
                before = before + more
            elseif more > 0 then
                used = used + more
            end
        end
        if used < 0 then used = 0 elseif used > MOST then used = MOST end
        if before < 0 then before = 0 elseif before > MOST then before = MOST end
        if drains == 1 then
            local left = limit - used
            if kind == SLIDING then
                local whole = window / tick
                left = left - ceil(before * (whole - floor((now - start) / tick)) / whole)
            end
            if left > 0 then used = used + left end
        end
        if used == 0 and before == 0 then
            if held then call('DEL', key) end
        else
            local lasts = kind == SLIDING and used > 0 and window or 0
            put_windows(key, start, used, before, window, now, lasts)
        end
    end
end
return #KEYS
