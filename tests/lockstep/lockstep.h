/* Lockstep: the interpreter and translated code run the same bare-metal programs, and their states are compared on the way.
 *
 *   programs.c  the programs: C functions, which also run natively and have to come to the same values
 *   traps.S     handlers of the guest, and its way into user mode
 *   machine.c   two guests, one for each engine; single steps and runs to the next checkpoint
 *   compare.c   states compared and told of
 *   main.c      which programs, how finely
 *
 * Nothing in the guests depends on time: there are no interrupts, and no instruction tells the time.
 */
#ifndef TESTS_LOCKSTEP_H
#define TESTS_LOCKSTEP_H

#include <stdbool.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* ---- programs ---- */

#define CHECKPOINTS 4096
#define HEAP_SIZE   0x200000u
struct work {
  u64 native; /* no guest: nothing is reported */
  u64 n;      /* checkpoints so far */
  u64 value[CHECKPOINTS];
  u64 faults; /* pages that the fault handler has mapped */
  u8 heap[HEAP_SIZE] __attribute__((aligned(4096)));
};
#define WORK_AT    0x100000ull
#define LAZY_AT    0x40000000ull /* pages that come with their first access, where the heap's last ones are */
#define LAZY_PAGES 64u
#define CHECK_PORT 0x80
#define END_PORT   0x81

struct program {
  const char *name;
  void (*run)(struct work *w);
  bool guest_only; /* page faults, user mode, code that is written */
};
extern const struct program programs[];
extern const unsigned n_programs;
void program_start(struct work *w, void (*run)(struct work *w)); /* RIP of a guest */

/* ---- traps.S ---- */
extern const char trap_page_fault[], trap_divide[], trap_undefined[], trap_call[];
/* Calls fn(arg) in ring 3; returns with the value that it gave to user_return(). */
u64 user_call(void (*fn)(void *arg), void *arg, u64 stack);
void user_return(u64 value);

/* ---- machine.c ---- */
enum side { INTERPRETER, TRANSLATOR, SIDES };
struct machine;
struct x86_vcpu;
struct machine *machine_new(enum side side, const struct program *p);
void machine_free(struct machine *m);
struct x86_vcpu *machine_vcpu(struct machine *m);
struct work *machine_work(struct machine *m);
const u8 *machine_memory(struct machine *m, u64 *size);
enum event { RUNS, CHECKPOINT, END, BROKEN };
/* One instruction (interpreter), or from one block to the next that is not reached by itself (translator). */
enum event machine_step(struct machine *m);
/* To the next checkpoint. */
enum event machine_run(struct machine *m);
/* From another thread: stops it for a moment. */
void machine_kick(struct machine *m);

/* ---- compare.c ---- */
bool same_registers(struct machine *a, struct machine *b); /* RIP and general registers */
bool same_state(struct machine *a, struct machine *b);     /* flags, segments, control registers, extended state as well */
bool same_memory(struct machine *a, struct machine *b);
void tell_state(struct machine *a, struct machine *b);
void tell_code(struct machine *m, u64 at);

#endif
