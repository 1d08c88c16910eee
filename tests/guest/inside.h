/* Guest side of tests whose guest is a C function: expectations, faults that are caught, user mode, control registers.
 *
 * A function of the test runs in the guest (inside_run) and says what it expects with EXPECT_EQ; the host reports what was not
 * so. try_*() make one access or instruction and return NO_FAULT or FAULT(vector, error code), CR2 is in `fault_address`.
 */
#ifndef TESTS_GUEST_INSIDE_H
#define TESTS_GUEST_INSIDE_H

#include "lapic.h"

#define NO_FAULT            (~0u)
#define FAULT(vector, code) ((unsigned)(vector) << 16 | (code))
#define PF(code)            FAULT(14, code)
#define GP0                 FAULT(13, 0)

#define ERR_P    1u
#define ERR_W    2u
#define ERR_U    4u
#define ERR_RSVD 8u
#define ERR_I    16u
#define ERR_PK   32u

/* ---- expectations ---- */

#define MAX_BAD 8
static volatile struct {
  int line;
  u64 got, want;
} bad[MAX_BAD];
static volatile u32 n_bad;

static inline void expect(int line, u64 got, u64 want) {
  if (got == want) return;
  if (n_bad < MAX_BAD) {
    bad[n_bad].line = line;
    bad[n_bad].got = got;
    bad[n_bad].want = want;
  }
  n_bad = n_bad + 1;
}
#define EXPECT_EQ(got, want) expect(__LINE__, (u64)(got), (u64)(want))
#define EXPECT(cond)         expect(__LINE__, !!(cond), 1)

/* ---- faults ---- */

static volatile u32 fault_seen;
static volatile u64 fault_address, fault_ip, recover_ip, recover_sp;

static inline u64 read_cr2(void) {
  u64 v;
  __asm__ volatile("mov %%cr2, %0" : "=r"(v)::"memory");
  return v;
}

/* Goes on behind the access, on the stack it had; AC off, as SMAP may be on. */
static inline void recover(struct frame *f, unsigned vector, u64 error) {
  fault_seen = FAULT(vector, (u32)error);
  fault_address = read_cr2();
  fault_ip = f->rip;
  f->rip = recover_ip;
  f->rsp = recover_sp;
  f->cs = SEL_CODE64;
  f->ss = SEL_DATA;
  f->rflags = 2;
}
#define TAKE_CODE(vector)                                                                                                        \
  __attribute__((interrupt)) static void take_##vector(struct frame *f, u64 error) {                                             \
    recover(f, vector, error);                                                                                                   \
  }
#define TAKE(vector)                                                                                                             \
  HANDLER take_##vector(struct frame *f) {                                                                                       \
    recover(f, vector, 0);                                                                                                       \
  }
TAKE(0)
TAKE(1)
TAKE(6)
TAKE(7)
TAKE(19)
TAKE_CODE(10)
TAKE_CODE(11)
TAKE_CODE(12) TAKE_CODE(13) TAKE_CODE(14) TAKE_CODE(17)
    /* The end of user code. */
    HANDLER take_done(struct frame *f) {
  recover(f, 0, 0);
  fault_seen = NO_FAULT;
}
#define USER_DONE "int $0x81\n"

/* Runs assembly that may fault: 1 is the label behind it.  RSP and RBP are restored, RAX, RCX and RDX are lost. */
#define TRY(text, ...)                                                                                                           \
  ({                                                                                                                             \
    fault_seen = NO_FAULT;                                                                                                       \
    __asm__ volatile("push %%rbp\n lea 1f(%%rip), %%rcx\n mov %%rcx, recover_ip(%%rip)\n mov %%rsp, recover_sp(%%rip)\n" text    \
                     "\n1: mov recover_sp(%%rip), %%rsp\n pop %%rbp\n"                                                           \
                     :                                                                                                           \
                     : __VA_ARGS__                                                                                               \
                     : "rax", "rcx", "rdx", "rsi", "rdi", "memory", "cc");                                                       \
    fault_seen;                                                                                                                  \
  })

static inline u32 try_read(u64 at) {
  return TRY("movb (%0), %%al", "r"(at));
}
static inline u32 try_write(u64 at) {
  return TRY("movb $0x5a, (%0)", "r"(at));
}
static inline u32 try_rmw(u64 at) {
  return TRY("lock orb $0, (%0)", "r"(at));
}
/* The page has a RET there. */
static inline u32 try_call(u64 at) {
  return TRY("call *%0", "r"(at));
}

/* Ring 3: code at a user page, with RBX and these flags; it ends with USER_DONE or a fault. */
static inline u32 user_run_flags(u64 code, u64 rbx, u64 flags) {
  fault_seen = NO_FAULT;
  __asm__ volatile("push %%rbp\n lea 1f(%%rip), %%rcx\n mov %%rcx, recover_ip(%%rip)\n mov %%rsp, recover_sp(%%rip)\n"
                   "push %2\n push %3\n push %5\n push %4\n push %0\n iretq\n1: pop %%rbp\n"
                   :
                   : "r"(code), "b"(rbx), "i"(SEL_DATA3), "i"(GUEST_STACK3), "i"(SEL_CODE64U), "r"(flags)
                   : "rax", "rcx", "rdx", "rsi", "rdi", "memory", "cc");
  return fault_seen;
}

static inline u32 user_run(u64 code, u64 rbx) {
  return user_run_flags(code, rbx, 2);
}

/* ---- control registers ---- */

#define CONTROL_REGISTER(n)                                                                                                      \
  static inline u64 read_cr##n(void) {                                                                                           \
    u64 v;                                                                                                                       \
    __asm__ volatile("mov %%cr" #n ", %0" : "=r"(v)::"memory");                                                                  \
    return v;                                                                                                                    \
  }                                                                                                                              \
  static inline u32 write_cr##n(u64 v) {                                                                                         \
    return TRY("mov %0, %%cr" #n, "r"(v));                                                                                       \
  }
CONTROL_REGISTER(0)
CONTROL_REGISTER(3)
CONTROL_REGISTER(4)

static inline void invlpg(u64 at) {
  __asm__ volatile("invlpg (%0)" ::"r"(at) : "memory");
}

/* ---- host side ---- */

/* Faults are caught, on a stack of their own: tests break RSP. */
static inline void inside_catch(struct guest *g) {
#define CATCH(vector) guest_idt64(g, vector, 0xe, 0, SEL_CODE64, (u64)(uintptr_t)take_##vector, 1)
  CATCH(0), CATCH(1), CATCH(6), CATCH(7), CATCH(10), CATCH(11), CATCH(12), CATCH(13), CATCH(14), CATCH(17), CATCH(19);
  guest_idt64(g, 0x81, 0xe, 3, SEL_CODE64, (u64)(uintptr_t)take_done, 0);
  n_bad = 0;
}

/* A 64-bit guest that will run f; its image at its own addresses. */
static inline struct guest *inside_start(void (*f)(void)) {
  struct guest *g = guest_new();
  guest_long(g, (u64)(uintptr_t)f);
  guest_map_image(g);
  inside_catch(g);
  return g;
}

/* What the guest did not find as it expected. */
#define inside_check()                                                                                                           \
  do {                                                                                                                           \
    for (u32 n_ = 0; n_ < n_bad && n_ < MAX_BAD; n_++)                                                                           \
      check_failed(__FILE__, bad[n_].line, "in the guest", bad[n_].got, bad[n_].want);                                           \
  } while (0)

#define inside_run(g)                                                                                                            \
  do {                                                                                                                           \
    CHECK_EQ(guest_next(g), DONE);                                                                                               \
    inside_check();                                                                                                              \
    guest_free(g);                                                                                                               \
  } while (0)

#endif
