-- Moves a limit by how requests have ended, once in an interval, whoever reports: the rule is that of `adaptive::State`.
local decode, encode, call, floor, ceil = struct.unpack, struct.pack, redis.call, math.floor, math.ceil
local min, max = math.min, math.max
local good, bad, base, least, most, grow, shrink, threshold, alpha, enough, interval, now =
    decode('<dddddddddddd', ARGV[1])
if now < 0 then
    local time = call('TIME')
    now = time[1] * 1000000 + time[2]
end

local limit, average, samples, since = base, 1, 0, now
local held = call('GET', KEYS[1])
if held then limit, average, samples, since = decode('<dddd', held) end
limit = min(max(limit, least), most)

local many = good + bad
if many > 0 then
    average = average + (1 - (1 - alpha) ^ many) * (good / many - average)
    samples = samples + many
end
if since - now > interval then since = now end
if now - since >= interval and samples >= enough then
    local slack = min(threshold, 1 - threshold) / 2
    if average >= threshold then
        limit = min(max(ceil(limit * grow - 1e-6), limit + 1), most)
    elseif average < threshold - slack then
        limit = max(min(floor(limit * shrink + 1e-6), limit - 1), least)
    end
    samples, since = 0, now
end
-- As long as ten intervals without a report, and a minute at least: then it begins anew.
call('SET', KEYS[1], encode('<dddd', limit, average, samples, since), 'PX', max(ceil(interval / 100), 60000))
return limit
