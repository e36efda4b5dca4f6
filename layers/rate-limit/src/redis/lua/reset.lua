-- Forgets what was used, and says of which keys there was any.
local was = {}
for i = 1, #KEYS do was[i] = redis.call('DEL', KEYS[i]) end
return was
