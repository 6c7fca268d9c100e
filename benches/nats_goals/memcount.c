/* Counts the bytes that memcpy and its like move in calls of 64 KiB and more. Preloaded with
 * LD_PRELOAD; memcount_bytes() gives the count since the start of the process. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>

#define LEAST_BYTES (64 << 10)

typedef void *(*copy_fn)(void *, const void *, size_t);

static atomic_ullong counted;
static _Atomic(copy_fn) real_memcpy, real_memmove, real_mempcpy;
/* dlsym may copy on its way. */
static _Thread_local int resolving;

unsigned long long memcount_bytes(void) { return atomic_load(&counted); }

static void *slow_copy(void *to, const void *from, size_t count)
{
    volatile char *target = to;
    const char *source = from;
    if (target < source)
        for (size_t at = 0; at < count; at++) target[at] = source[at];
    else
        for (size_t at = count; at > 0; at--) target[at - 1] = source[at - 1];
    return to;
}

static copy_fn resolve(_Atomic(copy_fn) *kept, const char *name)
{
    copy_fn found = atomic_load(kept);
    if (found != NULL || resolving) return found;
    resolving = 1;
    found = (copy_fn)dlsym(RTLD_NEXT, name);
    resolving = 0;
    atomic_store(kept, found);
    return found;
}

static void *copy(_Atomic(copy_fn) *kept, const char *name, void *to, const void *from, size_t n)
{
    if (n >= LEAST_BYTES) atomic_fetch_add(&counted, n);
    copy_fn real = resolve(kept, name);
    return real == NULL ? slow_copy(to, from, n) : real(to, from, n);
}

void *memcpy(void *to, const void *from, size_t n)
{
    return copy(&real_memcpy, "memcpy", to, from, n);
}

void *memmove(void *to, const void *from, size_t n)
{
    return copy(&real_memmove, "memmove", to, from, n);
}

void *mempcpy(void *to, const void *from, size_t n)
{
    copy(&real_mempcpy, "memcpy", to, from, n);
    return (char *)to + n;
}

/* What a compiler makes of the same calls with _FORTIFY_SOURCE; it has checked the room. */
void *__memcpy_chk(void *to, const void *from, size_t n, size_t room)
{
    (void)room;
    return memcpy(to, from, n);
}

void *__memmove_chk(void *to, const void *from, size_t n, size_t room)
{
    (void)room;
    return memmove(to, from, n);
}

void *__mempcpy_chk(void *to, const void *from, size_t n, size_t room)
{
    (void)room;
    return mempcpy(to, from, n);
}
