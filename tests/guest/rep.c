/* Interrupts and single steps between the iterations of repeated string instructions: RIP at the instruction, RCX, RSI, RDI and
 * memory in step, RF set in the flags image (SDM Vol. 1 7.3.9.3, Vol. 3B 17.3.1.1). */
#include <pthread.h>
#include <unistd.h>
#include "inside.h"

#define FLAG_TF 0x100u
#define FLAG_RF 0x10000u
#define SIZE    0x100000ul /* bytes that one instruction works on */
#define FROM    0x100000ul
#define TO      0x200000ul /* RAM behind it, too */

/* What the handler finds. */
static volatile struct { u64 rax, rcx, rsi, rdi, rip, flags; } seen __attribute__((used));
static void check_boundary(void) __attribute__((used));

#define ENTRY(name, after)                                                                                                       \
  __asm__(".pushsection .text\n" #name ":\n"                                                                                     \
          "mov %rax, seen(%rip)\n mov %rcx, seen+8(%rip)\n mov %rsi, seen+16(%rip)\n mov %rdi, seen+24(%rip)\n"                  \
          "mov (%rsp), %rax\n mov %rax, seen+32(%rip)\n mov 16(%rsp), %rax\n mov %rax, seen+40(%rip)\n"                          \
          "push %rcx\n push %rdx\n push %rsi\n push %rdi\n push %r8\n push %r9\n push %r10\n push %r11\n"                        \
          "cld\n call check_boundary\n" after "pop %r11\n pop %r10\n pop %r9\n pop %r8\n pop %rdi\n pop %rsi\n pop %rdx\n"       \
          "pop %rcx\n mov seen(%rip), %rax\n iretq\n.popsection");                                                               \
  extern const u8 name[]
ENTRY(entry_interrupt, "mov $0xfee000b0, %eax\n movl $0, (%rax)\n");
ENTRY(entry_step, "");

/* ---- the instructions ---- */

extern const u8 rep_stosb[], rep_stosq[], rep_stosb_down[], rep_movsl[], rep_movsb_down[], rep_movsb_over[], rep_lodsw[],
    repne_scasb[], repe_cmpsb[], rep_stosl32[];
#define FUNCTION(name, text) ".balign 16\n" #name ": " text "\n ret\n"
__asm__(".pushsection .text\n" /* */
        FUNCTION(rep_stosb, "rep stosb") FUNCTION(rep_stosq, "rep stosq") FUNCTION(rep_stosb_down, "rep stosb")
            FUNCTION(rep_movsl, "rep movsl") FUNCTION(rep_movsb_down, "rep movsb") FUNCTION(rep_movsb_over, "rep movsb")
                FUNCTION(rep_lodsw, "rep lodsw") FUNCTION(repne_scasb, "repne scasb") FUNCTION(repe_cmpsb, "repe cmpsb")
                    FUNCTION(rep_stosl32, "rep stosl (%edi)") ".popsection");

static const struct insn {
  const u8 *code;
  u8 size;
  bool down, source, target, writes;
  u64 from; /* source of the first element */
} insns[] = {
    {rep_stosb, 1, false, false, true, true, 0},          {rep_stosq, 8, false, false, true, true, 0},
    {rep_stosl32, 4, false, false, true, true, 0},        {rep_stosb_down, 1, true, false, true, true, 0},
    {rep_movsl, 4, false, true, true, true, FROM},        {rep_movsb_down, 1, true, true, true, true, FROM + SIZE - 1},
    {rep_movsb_over, 1, false, true, true, true, TO - 1}, /* each element is the source of the next */
    {rep_lodsw, 2, false, true, false, false, FROM},      {repne_scasb, 1, false, false, true, false, 0},
    {repe_cmpsb, 1, false, true, true, false, FROM},
};
#define N_INSNS (sizeof(insns) / sizeof(insns[0]))

static const struct insn *volatile running;
static volatile u64 count, to, hits, middle;
static volatile u8 old, fresh;

static u64 step(const struct insn *i, u64 start, u64 n) {
  return i->down ? start - n * i->size : start + n * i->size;
}
static u8 byte_at(u64 at) {
  return *(volatile u8 *)(uintptr_t)at;
}

/* An interrupt or step has come. */
static void check_boundary(void) {
  const struct insn *i = running;
  hits = hits + 1;
  if (!i || seen.rip != (u64)(uintptr_t)i->code) return;
  u64 done = count - seen.rcx;
  if (i->target) EXPECT_EQ(seen.rdi, step(i, to, done));
  if (i->source) EXPECT_EQ(seen.rsi, step(i, i->from, done));
  EXPECT_EQ(!!(seen.flags & FLAG_RF), done != 0);
  EXPECT(seen.rcx != 0);
  if (!done) return;
  middle = middle + 1;
  if (!i->writes) return;
  EXPECT_EQ(byte_at(step(i, to, done - 1)), fresh);
  EXPECT_EQ(byte_at(step(i, to, done)), old);
}

static void fill(u64 at, u8 v, u64 n) {
  u64 word = v * 0x0101010101010101ul;
  n /= 8;
  __asm__ volatile("rep stosq" : "+D"(at), "+c"(n) : "a"(word) : "memory");
}

/* One instruction over n elements. */
static void run(const struct insn *i, u64 n, u64 flags) {
  u64 rcx = n, rsi = i->from, rdi = to = i->down ? TO + n * i->size - 1 : TO, rax;
  count = n;
  old = 0x11;
  fresh = 0x22;
  running = NULL;
  fill(TO, i->writes ? old : fresh, SIZE);
  fill(i->from == TO - 1 ? TO - 8 : FROM, fresh, i->from == TO - 1 ? 8 : SIZE);
  rax = i->code == repne_scasb ? 0x33 : 0x2222222222222222;
  running = i;
  __asm__ volatile("push %[f]\n popfq\n call *%[code]\n pushfq\n andl $~0x500, (%%rsp)\n popfq"
                   : "+c"(rcx), "+S"(rsi), "+D"(rdi), "+a"(rax)
                   : [f] "r"(2 | flags | (i->down ? 0x400 : 0)), [code] "r"(i->code)
                   : "memory", "cc");
  running = NULL;
  EXPECT_EQ(rcx, 0);
  if (i->target) EXPECT_EQ(rdi, step(i, to, n));
  if (i->source) EXPECT_EQ(rsi, step(i, i->from, n));
  if (!i->writes) return;
  for (u64 k = 0; k < n; k += 1 + n / 64) EXPECT_EQ(byte_at(step(i, to, k)), fresh);
  EXPECT_EQ(byte_at(step(i, to, n - 1)), fresh);
}

/* ---- interrupts at any time ---- */

static volatile u32 stop, interrupted[N_INSNS];

static void guest_interrupts(void) {
  apic_on();
  pic_off();
  report(1);
  for (unsigned n = 0; n < N_INSNS; n++) {
    u64 end = rdtsc() + 5000 * ticks_per_ms;
    middle = 0;
    do run(&insns[n], SIZE / insns[n].size, 0x200);
    while (middle < 5 && rdtsc() < end);
    interrupted[n] = (u32)middle;
  }
  done();
}

static void *messages(void *arg) {
  struct guest *g = arg;
  while (!stop) {
    struct kvm_msi m = {.address_lo = 0xfee00000, .data = 0x50};
    guest_ioctl(g->vm, KVM_SIGNAL_MSI, &m);
    usleep(20);
  }
  return NULL;
}

static void interrupts(void) {
  struct guest *g = start_function(guest_interrupts);
  pthread_t t;
  inside_catch(g);
  stop = 0;
  HANDLE(g, 0x50, entry_interrupt);
  CHECK_EQ(guest_next(g), 1);
  pthread_create(&t, NULL, messages, g);
  CHECK_EQ(guest_next(g), DONE);
  stop = 1;
  pthread_join(t, NULL);
  inside_check();
  for (unsigned n = 0; n < N_INSNS; n++) CHECK(interrupted[n] > 0);
  guest_free(g);
}

/* ---- a trap after each iteration; the last one's has RF clear and RIP behind the instruction ---- */

#define STEPS 6

static void guest_steps(void) {
  for (unsigned n = 0; n < N_INSNS; n++) {
    hits = middle = 0;
    run(&insns[n], STEPS, FLAG_TF);
    EXPECT_EQ(middle, STEPS - 1);
    EXPECT_EQ(hits, 1 + STEPS + 4); /* CALL; the iterations; RET, PUSHFQ, AND, POPFQ */
  }
  done();
}
static void steps(void) {
  struct guest *g = inside_start(guest_steps);
  HANDLE(g, 1, entry_step);
  inside_run(g);
}

/* ---- the debugger outside sees each iteration, too ---- */

static void debugger(void) {
  static const u8 code[] = {0xf3, 0xaa, 0x90, 0xb0, 7, 0xe6, GUEST_PORT}; /* rep stosb */
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, code, sizeof(code));
  struct kvm_regs r = guest_regs(g);
  r.rcx = 4;
  r.rdi = GUEST_DATA;
  guest_set_regs(g, &r);
  struct kvm_guest_debug d = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_GUEST_DEBUG, &d), 0);
  for (unsigned n = 1; n <= 4; n++) {
    CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_DEBUG));
    r = guest_regs(g);
    CHECK_EQ(r.rcx, 4 - n);
    CHECK_EQ(r.rdi, GUEST_DATA + n);
    CHECK_EQ(r.rip, n < 4 ? GUEST_CODE : GUEST_CODE + 2);
  }
  d.control = 0;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_GUEST_DEBUG, &d), 0);
  CHECK_EQ(guest_next(g), 7);
  CHECK_EQ(guest_regs(g).rflags & FLAG_RF, 0);
  guest_free(g);
}

GUEST_MAIN({"interrupts", interrupts}, {"steps", steps}, {"debugger", debugger})
