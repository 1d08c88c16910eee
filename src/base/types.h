/* Short integer names, the address types of virtualization, and the handful of macros used everywhere. */
#ifndef BASE_TYPES_H
#define BASE_TYPES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

typedef u64 gva_t; /* guest virtual (linear) address */
typedef u64 gpa_t; /* guest physical address */
typedef u64 gfn_t; /* guest physical page number, gpa >> 12 */
typedef u64 hva_t; /* address in this process */

#define PAGE_SHIFT 12
#define PAGE_SIZE  4096ull
#define PAGE_MASK  (~(PAGE_SIZE - 1))

#define likely(x)      __builtin_expect(!!(x), 1)
#define unlikely(x)    __builtin_expect(!!(x), 0)
#define ARRAY_SIZE(a)  (sizeof(a) / sizeof((a)[0]))
#define BIT(n)         (1ull << (n))
#define ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a)-1))
#define ALIGN_UP(x, a)   ALIGN_DOWN((x) + (a)-1, a)
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* Functions whose accesses are the guest's: its races are its own business, not ThreadSanitizer's, and a host fault within its atomic operations would leave
 * locks of the sanitizer taken. */
#define GUEST_ACCESS __attribute__((no_sanitize("thread")))

/* Loads and stores of unaligned, possibly concurrently written guest memory. */
#define READ_ONCE(x)     (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile __typeof__(x) *)&(x) = (v))

#endif
