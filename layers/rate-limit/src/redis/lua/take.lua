-- Takes costs from several rules: groups of asks, and of a group all or nothing.
local plans = ARGV[1]
local takes, replicas, now, cursor = decode('<bdd', plans)
if now < 0 then
    local time = call('TIME')
    now = time[1] * 1000000 + time[2]
end

-- Several groups may ask for one key, and each sees what those before it have written.
local count, values, held = #KEYS, nil, nil
if count > 1 then
    values, held = call('MGET', unpack(KEYS)), {}
    for i = 1, count do
        local value = values[i]
        held[KEYS[i]] = value and #value == 24 and value
    end
end

local read, leaves, put_log, move
local rows, first, passes, replies, size = {}, 1, true, { now }, 1
for i = 1, count do
    local key = KEYS[i]
    local kind, last, limit, window, tick, cost, want, after = decode('<bbddddd', plans, cursor)
    cursor = after + 8

    local value, room, used, more, start, moved, member, own
    if kind < LOG then
        if held then value = held[key] else value = get(key) end
    end
    if kind == BUCKET then
        local capacity = limit * window
        used, more, moved = bucket(value, capacity, now)
        if used > capacity - cost * window then room = -1 end
        if want > 0 then room = room or floor((capacity - used) / window) end
    elseif kind == FIXED then
        start, used, more, moved = windows(value, window, now)
        room = limit - used
    elseif kind == SLIDING then
        start, used, more, moved = windows(value, window, now)
        local whole = window / tick
        local weighed = more * (whole - floor((now - start) / tick))
        if used + cost > limit or weighed > (limit - used - cost) * whole then room = -1 end
        if want > 0 then room = room or limit - used - ceil(weighed / whole) end
    elseif kind == LOG then
        if not read then read, leaves, put_log, move = logs() end
        used, more, start, member, own = read(key, window, now)
        if takes == 1 and used > 0 and start > now then
            move(key, window, now)
            used, more, start, member, own = read(key, window, now)
        end
        room = limit - used
    else
        member = plans:sub(after, after + 7)
        used = try('ZCOUNT', key, now + 1, now + 2 * HOLD)
        if type(used) == 'table' then used, moved = 0, true end
        room = limit - used
    end

    local full = 0
    if cost > limit then
        full, passes = 2, false
    elseif room and room < cost then
        full, passes = 1, false
    elseif want > cost then
        local share = want
        if room < share * replicas then share = floor(room / replicas) end
        if share > room then share = room end
        if share > cost then cost = share end
    end
    rows[i] = { kind, full, limit, window, cost, want, used, more, start, moved, member, own }

    if last == 1 then
        for j = first, i do
            kind, full, limit, window, cost, want, used, more, start, moved, member, own =
                unpack(rows[j], 1, 12)
            key = KEYS[j]
            local added = passes and takes == 1 and cost or 0
            -- A denial writes nothing, unless the clock has stepped back.
            local writes = added > 0 or moved and takes == 1
            replies[size + 1] = full
            if kind == BUCKET then
                local level = used + added * window
                replies[size + 2] = level
                size = size + 2
                if writes then value = put_bucket(key, level, more, now) end
            elseif kind == FIXED then
                replies[size + 2], replies[size + 3] = used + added, start
                size = size + 3
                if writes then value = put_windows(key, start, used + added, 0, window, now, 0) end
            elseif kind == SLIDING then
                used = used + added
                replies[size + 2], replies[size + 3], replies[size + 4] = used, more, start
                size = size + 4
                if writes then
                    value = put_windows(key, start, used, more, window, now, used > 0 and window or 0)
                end
            elseif kind == LOG then
                local total, wait, retry, reset = used + added, 0, 0, 0
                local base = used > 0 and more or 0
                if added > 0 then
                    put_log(key, used, more, start, member, own, added, window, now)
                    reset = window
                elseif total > 0 then
                    reset = (start > now and now or start) + window - now
                end
                if full == 1 then wait = leaves(key, base, total + cost - limit, window, now) end
                if total >= limit then retry = leaves(key, base, total + 1 - limit, window, now) end
                replies[size + 2], replies[size + 3] = total, wait
                replies[size + 4], replies[size + 5] = retry, reset
                size = size + 5
            else
                replies[size + 2] = used + added
                size = size + 2
                if added > 0 then
                    if moved then call('DEL', key) end
                    call('ZREMRANGEBYSCORE', key, '-inf', now)
                    call('ZADD', key, now + HOLD, member)
                    for place = 2, added do
                        call('ZADD', key, now + HOLD, member .. encode('<d', place))
                    end
                    call('PEXPIRE', key, HOLD / 1000)
                end
            end
            if writes and held and kind < LOG then held[key] = value end
            if want > 0 then
                size = size + 1
                replies[size] = cost
            end
        end
        first, passes = i + 1, true
    end
end
return replies
