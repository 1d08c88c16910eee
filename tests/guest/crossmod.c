/* Code that others change while a vCPU runs it: another vCPU by the manual's protocol (SDM Vol. 3A 8.1.3) and by the breakpoint
 * method of Linux, the client before an interrupt, slots that change meanwhile. */
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>
#include "inside.h"

#define CODE 0x200000ul

static volatile u32 flag, ack, stop, calls, value, strange, acks;

typedef u32 fn(void);
static u32 run(u64 at) {
  return ((fn *)(uintptr_t)at)();
}
static void put32(u64 at, u32 v) {
  *(volatile u32 *)(uintptr_t)at = v;
}
/* mov $v, %eax; ret */
static void put_function(u64 at, u32 v) {
  *(volatile u8 *)(uintptr_t)at = 0xb8;
  put32(at + 1, v);
  *(volatile u8 *)(uintptr_t)(at + 5) = 0xc3;
}
static void serialize(void) {
  u32 a = 0, b, c = 0, d;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory");
}

/* Rounds: as many, or what fits into two seconds where other programs keep the vCPUs' threads waiting. */
static volatile u64 end;
static bool more(u32 n, u32 rounds) {
  if (!end) end = rdtsc() + 2000 * ticks_per_ms;
  return n <= 5 || (n <= rounds && rdtsc() < end);
}

/* ---- two vCPUs ---- */

struct pair {
  struct guest *g, *other;
  pthread_t thread;
};

static void *run_other(void *arg) {
  return (void *)(uintptr_t)guest_next(arg);
}

/* Both in 64-bit mode at once; the second on a stack of its own. */
static struct pair start(void (*f)(void), void (*other)(void)) {
  struct pair p = {.g = start_function(f)};
  alarm(300);
  inside_catch(p.g);
  flag = ack = stop = calls = value = strange = acks = 0;
  end = 0;
  static const u8 function[] = {0xb8, 1, 1, 1, 1, 0xc3};
  guest_load(p.g, CODE, function, sizeof(function));
  p.other = guest_add_cpu(p.g, 1);
  struct kvm_sregs from = guest_sregs(p.g), s = guest_sregs(p.other);
  struct kvm_mp_state running = {.mp_state = KVM_MP_STATE_RUNNABLE};
  from.apic_base = s.apic_base;
  guest_set_sregs(p.other, &from);
  guest_set_regs(p.other, &(struct kvm_regs){.rip = (u64)(uintptr_t)other, .rsp = GUEST_RSP0, .rflags = 2});
  CHECK_EQ(guest_ioctl(p.other->vcpu, KVM_SET_MP_STATE, &running), 0);
  pthread_create(&p.thread, NULL, run_other, p.other);
  return p;
}

static void finish(struct pair *p) {
  void *last;
  CHECK_EQ(guest_next(p->g), DONE);
  pthread_join(p->thread, &last);
  CHECK_EQ((uintptr_t)last, DONE);
  inside_check();
  guest_free_cpu(p->other);
  guest_free(p->g);
}

/* ---- the manual's protocol: new code, then the flag; the other serialises before it goes there ---- */

static void guest_writer(void) {
  for (u32 n = 1; more(n, 300); n++) {
    put_function(CODE + n % 3 * 0xffd, n); /* the second across a page border */
    flag = n;
    wait_count(&ack, n);
    EXPECT_EQ(ack, n);
  }
  stop = 1;
  done();
}
static void guest_reader(void) {
  for (u32 n = 1; !stop; relax()) {
    if (flag != n) continue;
    serialize();
    EXPECT_EQ(run(CODE + n % 3 * 0xffd), n);
    ack = n++;
  }
  done();
}

static void protocol(void) {
  struct pair p = start(guest_writer, guest_reader);
  finish(&p);
}

/* ---- pages become code while the writer, whose TLB lets it write them, is halted: few and very many ---- */

HANDLER take_wake(struct frame *f) { eoi(); }

static unsigned pages_of(u32 n) { return n % 2 ? 40 : 100; }

static void guest_sleeping_writer(void) {
  apic_on();
  for (u32 n = 1; more(n, 100); n++) {
    for (unsigned k = 0; k < pages_of(n); k++) put_function(CODE + k * 0x1000, n + k);
    flag = n;
    while (ack != n) __asm__ volatile("sti\n\thlt\n\tcli" ::: "memory");
  }
  stop = 1;
  done();
}
static void guest_many_reader(void) {
  apic_on();
  for (u32 n = 1; !stop; relax()) {
    if (flag != n) continue;
    serialize();
    for (unsigned k = 0; k < pages_of(n); k++) EXPECT_EQ(run(CODE + k * 0x1000), n + k);
    ack = n++;
    ipi(0, 0x51);
  }
  done();
}

static void many_pages(void) {
  struct pair p = start(guest_sleeping_writer, guest_many_reader);
  HANDLE(p.g, 0x51, take_wake);
  finish(&p);
}

/* ---- breakpoint first, then the tail, then the first byte: the other runs the code all the time ---- */

#define MARK 0x12345678u /* the breakpoint was there */

HANDLER take_sync(struct frame *f) {
  acks = acks + 1;
  eoi();
}
/* INT3 stands for the whole instruction of 5 bytes. */
HANDLER take_breakpoint(struct frame *f) {
  if (f->rip != CODE + 1) strange = strange + 1;
  f->rip = CODE + 5;
}

static void guest_runner(void) {
  apic_on();
  sti();
  while (!stop) {
    u32 got;
    __asm__ volatile("call *%1" : "=a"(got) : "r"(CODE), "a"(MARK) : "memory", "cc");
    if (got != MARK && got != (got & 0xff) * 0x01010101) strange = strange + 1;
    value = got;
    calls = calls + 1;
  }
  done();
}

/* All processors serialise: the other takes an interrupt and returns from it. */
static void sync_core(void) {
  u32 before = acks;
  ipi(1, 0x50);
  wait_count(&acks, before + 1);
}

static void poke(u32 v) {
  volatile u8 *code = (u8 *)CODE;
  code[0] = 0xcc;
  sync_core();
  *(volatile u16 *)(code + 1) = (u16)v;
  *(volatile u16 *)(code + 3) = (u16)(v >> 16);
  sync_core();
  code[0] = 0xb8;
  sync_core();
}

static void guest_poker(void) {
  apic_on();
  wait_count(&calls, 10);
  for (u32 n = 2; more(n, 150); n++) {
    poke(n * 0x01010101);
    wait_count(&calls, calls + 2);
    EXPECT_EQ(value, n * 0x01010101);
  }
  stop = 1;
  done();
}

static void breakpoint(void) {
  struct pair p = start(guest_poker, guest_runner);
  HANDLE(p.g, 0x50, take_sync);
  HANDLE(p.g, 3, take_breakpoint);
  finish(&p);
  CHECK_EQ(strange, 0);
}

/* ---- the client writes code, then interrupts: the handler runs the new code, and who hears of it from the handler ---- */

HANDLER take_news(struct frame *f) {
  value = run(CODE);
  acks = acks + 1;
  eoi();
}
static void guest_listener(void) {
  apic_on();
  pic_off();
  report(1);
  sti();
  while (!stop) calls = calls + (run(CODE) != 0);
  cli();
  done();
}
static void guest_follower(void) {
  for (u32 n = 0; !stop; relax()) {
    if (acks == n) {
      run(CODE); /* keeps the old code in use */
      continue;
    }
    n = acks;
    u32 got = run(CODE);
    if (got < flag) strange = strange + 1;
    ack = n;
  }
  done();
}

static void wait_host(const volatile u32 *count, u32 n) {
  for (unsigned k = 0; *count < n && k < 50000; k++) usleep(100);
  CHECK(*count >= n);
}

/* The code's page may have been written at any time; the interrupt is what tells of it. */
static void *client_thread(void *arg) {
  struct pair *p = arg;
  time_t from = time(NULL);
  for (u32 n = 2; n < 100 && (n < 5 || time(NULL) < from + 3); n++) {
    struct kvm_msi msi = {.address_lo = 0xfee00000, .data = 0x50};
    *(volatile u32 *)(void *)(p->g->mem + CODE + 1) = n;
    flag = n;
    CHECK_EQ(guest_ioctl(p->g->vm, KVM_SIGNAL_MSI, &msi), 1);
    wait_host(&acks, n - 1);
    CHECK_EQ(value, n);
    wait_host(&ack, n - 1);
  }
  stop = 1;
  return NULL;
}

static void client(void) {
  struct pair p = start(guest_listener, guest_follower);
  HANDLE(p.g, 0x50, take_news);
  CHECK_EQ(guest_next(p.g), 1);
  pthread_t t;
  pthread_create(&t, NULL, client_thread, &p);
  finish(&p);
  pthread_join(t, NULL);
  CHECK_EQ(strange, 0);
}

/* ---- interrupts make two vCPUs compare the same code with memory at once: both go on when no more come ---- */

HANDLER take_tick(struct frame *f) {
  acks = acks + 1;
  eoi();
}
static void guest_ticked(void) {
  apic_on();
  pic_off();
  report(1);
  sti();
  for (; !stop; calls = calls + 1) run(CODE);
  cli();
  done();
}
static void guest_beside(void) {
  for (; !stop; ack = ack + 1) run(CODE);
  done();
}

static void *tick_thread(void *arg) {
  struct pair *p = arg;
  time_t from = time(NULL);
  for (u32 n = 0; n < 100000 && (n < 50 || time(NULL) < from + 2); n++) {
    for (u32 k = 0; k <= n % 4; k++) {
      struct kvm_msi msi = {.address_lo = 0xfee00000, .data = 0x50};
      CHECK(guest_ioctl(p->g->vm, KVM_SIGNAL_MSI, &msi) >= 0); /* 0: the one before still waits */
    }
    u32 a = calls, b = ack;
    for (unsigned k = 0; k < 1000000 && (calls == a || ack == b); k++) sched_yield();
    wait_host(&calls, a + 1);
    wait_host(&ack, b + 1);
  }
  stop = 1;
  return NULL;
}

static void compared(void) {
  struct pair p = start(guest_ticked, guest_beside);
  HANDLE(p.g, 0x50, take_tick);
  CHECK_EQ(guest_next(p.g), 1);
  pthread_t t;
  pthread_create(&t, NULL, tick_thread, &p);
  finish(&p);
  pthread_join(t, NULL);
  CHECK(acks > 0);
}

/* ---- slots change while code changes itself ---- */

static u8 backing[0x4000] __attribute__((aligned(4096)));
#define SLOT_GPA 0x20000000u
#define SLOT_LIN 0x50000000ul

/* 1: incl 2f + 1; 2: mov $n, %eax; ret: each call returns one more. */
static void guest_counter(void) {
  u32 n = 0;
  while (!stop) {
    if (run(SLOT_LIN) != ++n) strange = strange + 1;
    calls = n;
  }
  done();
}
static void guest_idle(void) {
  while (!stop) calls = calls + 0 * run(CODE);
  done();
}

static void set_slot(struct guest *g, unsigned slot, u64 gpa, size_t size, void *host, u32 flags) {
  struct kvm_userspace_memory_region r = {
      .slot = slot, .flags = flags, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (u64)(uintptr_t)host};
  CHECK_EQ(guest_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &r), 0);
}

/* Logging goes on and off for the slot with the code, another slot comes and goes. */
static void *slots_thread(void *arg) {
  struct pair *p = arg;
  time_t from = time(NULL);
  for (u32 n = 0; n < 100 && (n < 5 || time(NULL) < from + 3); n++) {
    set_slot(p->g, 8, SLOT_GPA, 0x1000, backing, n & 1 ? 0 : KVM_MEM_LOG_DIRTY_PAGES);
    set_slot(p->g, 9, SLOT_GPA + 0x2000, n & 1 ? 0 : 0x1000, backing + 0x2000, 0);
    u32 before = calls; /* from now on every call is logged */
    wait_host(&calls, before + 2);
    if (n & 1) continue;
    u64 bitmap = 0;
    struct kvm_dirty_log log = {.slot = 8, .dirty_bitmap = &bitmap};
    CHECK_EQ(guest_ioctl(p->g->vm, KVM_GET_DIRTY_LOG, &log), 0);
    CHECK_EQ(bitmap, 1);
  }
  stop = 1;
  return NULL;
}

static void slots(void) {
  static const u8 code[] = {0xff, 0x05, 1, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0xc3};
  struct pair p = start(guest_counter, guest_idle);
  for (unsigned n = 0; n < sizeof(code); n++) backing[n] = code[n];
  guest_map(p.g, SLOT_LIN, SLOT_GPA, 0x1000, P_W);
  set_slot(p.g, 8, SLOT_GPA, 0x1000, backing, 0);
  pthread_t t;
  pthread_create(&t, NULL, slots_thread, &p);
  finish(&p);
  pthread_join(t, NULL);
  CHECK_EQ(strange, 0);
}

GUEST_MAIN({"protocol", protocol}, {"many-pages", many_pages}, {"breakpoint", breakpoint}, {"client", client}, {"compared", compared}, {"slots", slots})
