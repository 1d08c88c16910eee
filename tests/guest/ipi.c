/* Several vCPUs on threads of their own: start-up by INIT and SIPI, IPIs of all kinds, locked instructions. */
#include <pthread.h>
#include <string.h>
#include <unistd.h>
#include "lapic.h"

#define MAX_CPUS 4

/* For the start-up code, at PARAM. */
struct param {
  u16 gdt_limit;
  u32 gdt_base;
  u16 idt_limit;
  u32 idt_base;
  u32 cr3;
  u32 started;            /* how many APs took a stack */
  u32 cs, cr0, flags, ip; /* of the last one, at the SIPI vector */
  u32 edx, ss_ds;
  u64 entry;
} __attribute__((packed));
#define PARAM 0x7000

/* Real mode to 64-bit mode; a stack of 4 KiB from 0x40000 on. */
GUEST_BLOB(start_up, ".code16\n"
                     "0: cli\n"
                     "mov %ss, %bx\n"
                     "shl $16, %ebx\n"
                     "mov %ds, %bx\n"
                     "xor %ax, %ax\n"
                     "mov %ax, %ds\n"
                     "mov %ebx, 0x7028\n"
                     "mov %edx, 0x7024\n"
                     "xor %eax, %eax\n"
                     "mov %cs, %ax\n"
                     "mov %eax, 0x7014\n"
                     "mov %cr0, %eax\n"
                     "mov %eax, 0x7018\n"
                     "mov $0x7000, %sp\n"
                     "mov %cs, %ax\n"
                     "mov %ax, %ss\n"
                     "pushfl\n"
                     "popl 0x701c\n"
                     "call 1f\n"
                     "1: pop %ax\n"
                     "sub $(1b - 0b), %ax\n"
                     "movzwl %ax, %eax\n"
                     "mov %eax, 0x7020\n"
                     "lgdtl 0x7000\n"
                     "lidtl 0x7006\n"
                     "mov 0x700c, %eax\n"
                     "mov %eax, %cr3\n"
                     "mov $0x620, %eax\n"
                     "mov %eax, %cr4\n"
                     "mov $0xc0000080, %ecx\n"
                     "mov $0x901, %eax\n"
                     "xor %edx, %edx\n"
                     "wrmsr\n"
                     "mov $0x80010033, %eax\n"
                     "mov %eax, %cr0\n"
                     "ljmpl $0x08, $(0x8000 + 2f - 0b)\n"
                     ".code64\n"
                     "2: mov $0x10, %eax\n"
                     "mov %eax, %ds\n"
                     "mov %eax, %es\n"
                     "mov %eax, %ss\n"
                     "mov $1, %eax\n"
                     "lock xadd %eax, 0x7010\n"
                     "inc %eax\n"
                     "shl $12, %eax\n"
                     "lea 0x40000(%rax), %rsp\n"
                     "mov 0x702c, %rax\n"
                     "call *%rax\n"
                     "ud2\n");

static volatile u32 cpus, online;
static volatile u32 got[MAX_CPUS][256];
static volatile u32 go, stop, left;
static volatile u64 result[8];

static u32 me(void) {
  return apic_read(A_ID) >> 24;
}
static void add(volatile u32 *p) {
  __asm__ volatile("lock incl %0" : "+m"(*p));
}

HANDLER take_ipi(struct frame *f) {
  add(&got[me()][0x50]);
  eoi();
}
HANDLER take_nmi(struct frame *f) {
  add(&got[me()][2]);
}
/* Answers to the CPU with ID 0. */
HANDLER take_ping(struct frame *f) {
  add(&got[me()][0x51]);
  eoi();
  ipi(0, 0x50);
}
/* A token goes round. */
HANDLER take_token(struct frame *f) {
  u32 id = me();
  add(&got[id][0x52]);
  eoi();
  ipi((id + 1) % cpus, 0x52);
}

/* ---- host side ---- */

struct machine {
  struct guest *g, *ap[MAX_CPUS];
  pthread_t thread[MAX_CPUS];
};

static u32 mp_state(struct guest *g) {
  struct kvm_mp_state s = {0};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_MP_STATE, &s), 0);
  return s.mp_state;
}

static void *run_ap(void *arg) {
  return (void *)(uintptr_t)guest_next(arg);
}

/* n vCPUs; the first runs f, the others wait for SIPI and then run ap_main. */
static struct machine machine_start(unsigned n, void (*f)(void), void (*ap_main)(void)) {
  struct machine m = {0};
  memset((void *)(uintptr_t)got, 0, sizeof(got));
  memset((void *)(uintptr_t)result, 0, sizeof(result));
  cpus = n;
  online = go = stop = left = 0;
  alarm(300);
  m.g = start_function(f);
  struct param p = {.gdt_base = GUEST_GDT,
                    .gdt_limit = GDT_ENTRIES * 8 - 1,
                    .idt_base = GUEST_IDT,
                    .idt_limit = 0xfff,
                    .cr3 = (u32)m.g->cr3,
                    .entry = (u64)(uintptr_t)ap_main};
  guest_load(m.g, PARAM, &p, sizeof(p));
  guest_load_blob(m.g, start_up);
  HANDLE(m.g, 2, take_nmi);
  HANDLE(m.g, 0x50, take_ipi);
  HANDLE(m.g, 0x51, take_ping);
  HANDLE(m.g, 0x52, take_token);
  for (unsigned k = 1; k < n; k++) {
    m.ap[k] = guest_add_cpu(m.g, k);
    CHECK_EQ(mp_state(m.ap[k]), KVM_MP_STATE_UNINITIALIZED);
    pthread_create(&m.thread[k], NULL, run_ap, m.ap[k]);
  }
  return m;
}

static void machine_end(struct machine *m) {
  for (unsigned k = 1; k < cpus; k++) {
    void *last;
    pthread_join(m->thread[k], &last);
    CHECK_EQ((uintptr_t)last, DONE);
    CHECK_EQ(mp_state(m->ap[k]), KVM_MP_STATE_RUNNABLE);
    guest_free_cpu(m->ap[k]);
  }
  guest_free(m->g);
}

static void run_machine(unsigned n, void (*f)(void), void (*ap_main)(void)) {
  struct machine m = machine_start(n, f, ap_main);
  CHECK_EQ(guest_next(m.g), DONE);
  machine_end(&m);
}

/* ---- guest side ---- */

/* INIT, SIPI, SIPI to each of the others, one after the other. */
static void start_aps(void) {
  apic_on();
  for (u32 k = 1; k < cpus; k++) {
    ipi(k, ICR_INIT);
    wait_ms(1);
    ipi(k, ICR_SIPI | GUEST_CODE >> 12);
    wait_ms(1);
    ipi(k, ICR_SIPI | GUEST_CODE >> 12); /* no effect any more */
    wait_count(&online, k);
  }
}

static void ap_ready(void) {
  apic_on();
  add(&online);
}

static _Noreturn void ap_leave(void) {
  add(&left);
  done();
}

/* Takes what comes, until the end: at times halted. */
static void ap_serve(void) {
  ap_ready();
  while (!stop) halt_once();
  ap_leave();
}
static void ap_spin(void) {
  ap_ready();
  sti();
  while (!stop) relax();
  ap_leave();
}
/* Interrupts off: only NMIs. */
static void ap_deaf(void) {
  ap_ready();
  while (!stop) __asm__ volatile("hlt" ::: "memory");
  ap_leave();
}

/* The others leave their loops: an NMI ends any HLT; again, as it may come just before the HLT. */
static _Noreturn void finish(void) {
  cli();
  stop = 1;
  do {
    wait_ms(1);
    for (u32 k = 1; k < cpus; k++) ipi(k, ICR_NMI);
  } while (left < cpus - 1);
  done();
}

/* ---- start-up ---- */

static void cpuid(u32 leaf, u32 r[4]) {
  __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(0));
}

static void guest_startup(void) {
  u32 r[4];
  start_aps();
  cpuid(1, r);
  result[2] = r[0];
  result[0] = online;
  result[1] = *(volatile u32 *)(uintptr_t)(PARAM + 0x10);
  finish();
}

static void startup(unsigned n) {
  struct machine m = machine_start(n, guest_startup, ap_deaf);
  CHECK_EQ(guest_next(m.g), DONE);
  struct param *p = (struct param *)(void *)(m.g->mem + PARAM);
  CHECK_EQ(result[0], n - 1);
  CHECK_EQ(result[1], n - 1);
  CHECK_EQ(p->cs, GUEST_CODE >> 4);
  CHECK_EQ(p->ip, 0);
  CHECK_EQ(p->cr0 & ~0x60000000u, 0x10); /* INIT leaves CD and NW as they are */
  CHECK_EQ(p->flags & 0x3f7702, 2);      /* but the arithmetic flags */
  CHECK_EQ(p->ss_ds, 0);
  CHECK_EQ(p->edx, result[2]); /* the processor's signature */
  machine_end(&m);
}
static void startup_2(void) {
  startup(2);
}
static void startup_4(void) {
  startup(4);
}

/* An INIT takes a running AP back to waiting; the next SIPI starts it anew. */
static void guest_restart(void) {
  start_aps();
  ipi(1, ICR_INIT);
  wait_ms(1);
  ipi(1, 0x50); /* to an APIC after reset: software disabled */
  wait_ms(1);
  result[0] = online;
  ipi(1, ICR_SIPI | GUEST_CODE >> 12);
  wait_count(&online, 2);
  result[1] = online;
  finish();
}

static void restart(void) {
  run_machine(2, guest_restart, ap_spin);
  CHECK_EQ(result[0], 1);
  CHECK_EQ(result[1], 2);
  CHECK_EQ(got[1][0x50], 0);
}

/* ---- fixed IPIs ---- */

#define ROUNDS 10000u

/* Every other answer is waited for in HLT. */
static void guest_ping(void) {
  start_aps();
  u32 round = 0;
  for (; round < ROUNDS; round++) {
    cli();
    ipi(1 + round % (cpus - 1), 0x51);
    if (round & 1) {
      while (got[0][0x50] <= round) halt_once();
    } else {
      sti();
      wait_count(&got[0][0x50], round + 1);
    }
    if (got[0][0x50] != round + 1) break;
  }
  result[0] = round;
  finish();
}

static void ping(unsigned n, void (*ap_main)(void)) {
  run_machine(n, guest_ping, ap_main);
  u32 sum = 0;
  for (unsigned k = 1; k < n; k++) sum += got[k][0x51];
  CHECK_EQ(result[0], ROUNDS);
  CHECK_EQ(got[0][0x50], ROUNDS);
  CHECK_EQ(sum, ROUNDS);
}
static void ping_2(void) {
  ping(2, ap_serve);
}
static void ping_2_spin(void) {
  ping(2, ap_spin);
}
static void ping_4(void) {
  ping(4, ap_serve);
}

/* One token goes from CPU to CPU. */
static void guest_ring(void) {
  start_aps();
  ipi(1, 0x52);
  while (got[0][0x52] < ROUNDS / 4) halt_once();
  result[0] = got[0][0x52];
  /* The token is out again: the vector waits here at its next return. */
  u64 end = rdtsc() + 5000 * ticks_per_ms;
  while (!apic_bit(A_IRR, 0x52) && rdtsc() < end) relax();
  for (u32 k = 1; k < cpus; k++) result[k] = got[k][0x52];
  result[4] = apic_bit(A_IRR, 0x52);
  finish();
}

static void ring(void) {
  run_machine(4, guest_ring, ap_serve);
  for (unsigned k = 1; k < 4; k++) CHECK_EQ(result[k], result[0] + 1);
  CHECK_EQ(result[4], 1);
}

/* ---- all the others, all, logical; NMI ---- */

static bool all_got(u32 first, unsigned vector, u32 n) {
  for (u32 k = first; k < cpus; k++) wait_count(&got[k][vector], n);
  wait_ms(1);
  for (u32 k = 0; k < cpus; k++)
    if (got[k][vector] != (k < first ? 0 : n)) return false;
  return true;
}

static void guest_broadcast(void) {
  start_aps();
  sti();
  bool good = true;
  for (u32 n = 1; n <= 50; n++) {
    ipi(0, ICR_TO_OTHERS | 0x50);
    for (u32 k = 1; k < cpus; k++) wait_count(&got[k][0x50], n);
  }
  result[0] = all_got(1, 0x50, 50);
  for (u32 n = 1; n <= 20; n++) {
    ipi(0, ICR_TO_OTHERS | ICR_NMI);
    for (u32 k = 1; k < cpus; k++) wait_count(&got[k][2], n);
  }
  result[1] = all_got(1, 2, 20);
  ipi(0, ICR_TO_ALL | 0x50);
  for (u32 k = 1; k < cpus; k++) wait_count(&got[k][0x50], 51);
  wait_count(&got[0][0x50], 1);
  ipi(0xff, 0x50);
  for (u32 k = 1; k < cpus; k++) wait_count(&got[k][0x50], 52);
  wait_count(&got[0][0x50], 2);
  wait_ms(1);
  for (u32 k = 0; k < cpus; k++) good &= got[k][0x50] == (k ? 52u : 2u);
  result[2] = good;
  finish();
}

static void broadcast(unsigned n, void (*ap_main)(void)) {
  run_machine(n, guest_broadcast, ap_main);
  CHECK_EQ(result[0], 1);
  CHECK_EQ(result[1], 1);
  CHECK_EQ(result[2], 1);
}
static void broadcast_2(void) {
  broadcast(2, ap_spin);
}
static void broadcast_4(void) {
  broadcast(4, ap_serve);
}

/* To CPUs that are halted with interrupts off. */
static void guest_nmi(void) {
  start_aps();
  for (u32 n = 0; n < 100 * (cpus - 1); n++) {
    u32 k = 1 + n % (cpus - 1), before = got[k][2];
    ipi(k, ICR_NMI);
    wait_count(&got[k][2], before + 1);
  }
  for (u32 k = 1; k < cpus; k++) result[k] = got[k][2];
  ipi(1, 0x50); /* does not come through */
  wait_ms(2);
  result[4] = got[1][0x50];
  finish();
}

static void nmi(void) {
  run_machine(4, guest_nmi, ap_deaf);
  for (unsigned k = 1; k < 4; k++) CHECK_EQ(result[k], 100);
  CHECK_EQ(result[4], 0);
}

/* ---- locked instructions ---- */

#define TIMES 10000u
static volatile u64 sum64;
static volatile u32 sum32, sum_xadd, sum_cas, spin, plain, finished, odd;
static volatile struct {
  u8 pad[61];
  u64 v;
} __attribute__((packed, aligned(64))) split; /* across two lines */

static void count_up(void) {
  for (u32 n = 0; n < TIMES; n++) {
    u32 one = 1, old = sum_cas, zero;
    u64 one64 = 1;
    __asm__ volatile("lock incq %0" : "+m"(sum64));
    __asm__ volatile("lock addl $3, %0" : "+m"(sum32));
    __asm__ volatile("lock xaddl %0, %1" : "+r"(one), "+m"(sum_xadd));
    if (n % 16 == 0) __asm__ volatile("lock xaddq %0, %1" : "+r"(one64), "+m"(split.v)); /* slow on some hosts */
    __asm__ volatile("1: lea 1(%0), %%ecx; lock cmpxchgl %%ecx, %1; jne 1b" : "+a"(old), "+m"(sum_cas)::"ecx", "cc");
    do { /* XCHG locks by itself */
      zero = 1;
      __asm__ volatile("pause; xchgl %0, %1" : "+r"(zero), "+m"(spin)::"memory");
    } while (zero);
    plain = plain + 1;
    spin = 0;
    __asm__ volatile("lock btcl $5, %0" : "+m"(odd));
  }
  add(&finished);
}

static void ap_count(void) {
  ap_ready();
  while (!go) relax();
  count_up();
  while (!stop) relax();
  ap_leave();
}

static void guest_count(void) {
  start_aps();
  go = 1;
  count_up();
  wait_count(&finished, cpus);
  finish();
}

static void locked(unsigned n) {
  sum64 = split.v = sum32 = sum_xadd = sum_cas = spin = plain = finished = odd = 0;
  run_machine(n, guest_count, ap_count);
  CHECK_EQ(finished, n);
  CHECK_EQ(sum64, (u64)n * TIMES);
  CHECK_EQ(sum32, 3 * n * TIMES);
  CHECK_EQ(sum_xadd, n * TIMES);
  CHECK_EQ(split.v, (u64)n * TIMES / 16);
  CHECK_EQ(sum_cas, n * TIMES);
  CHECK_EQ(plain, n * TIMES);
  CHECK_EQ(odd, 0);
}
static void locked_2(void) {
  locked(2);
}
static void locked_4(void) {
  locked(4);
}

/* ---- the hypercall for many IPIs (KVM_HC_SEND_IPI) ---- */

static u64 send_ipi(bool amd, u64 low, u64 high, u32 min, u32 icr) {
  u64 r;
  if (amd)
    __asm__ volatile("vmmcall" : "=a"(r) : "a"(10ul), "b"(low), "c"(high), "d"((u64)min), "S"((u64)icr) : "memory");
  else
    __asm__ volatile("vmcall" : "=a"(r) : "a"(10ul), "b"(low), "c"(high), "d"((u64)min), "S"((u64)icr) : "memory");
  return r;
}

static void guest_hypercall(void) {
  u32 r[4];
  start_aps();
  cpuid(0, r);
  bool amd = r[2] == 0x444d4163; /* "cAMD" */
  cpuid(0x40000001, r);
  result[0] = r[0] >> 11 & 1;
  if (!result[0]) finish();
  sti();
  bool good = true;
  for (u32 n = 1; n <= 50; n++) {
    good &= send_ipi(amd, 0xe, 0, 0, 0x50) == 3;
    for (u32 k = 1; k < cpus; k++) wait_count(&got[k][0x50], n);
  }
  result[1] = good;
  result[2] = all_got(1, 0x50, 50);
  result[3] = send_ipi(amd, 1, 0, 2, ICR_NMI); /* bit 0 is CPU 2 */
  wait_count(&got[2][2], 1);
  wait_ms(1);
  result[4] = got[0][2] == 0 && got[1][2] == 0 && got[2][2] == 1 && got[3][2] == 0;
  result[5] = send_ipi(amd, 1ull << 40, 1, 0, 0x50); /* nobody */
  finish();
}

static void hypercall(void) {
  run_machine(4, guest_hypercall, ap_serve);
  if (!result[0]) return;
  CHECK_EQ(result[1], 1);
  CHECK_EQ(result[2], 1);
  CHECK_EQ(result[3], 1);
  CHECK_EQ(result[4], 1);
  CHECK_EQ(result[5], 0);
}

GUEST_MAIN({"startup-2", startup_2}, {"startup-4", startup_4}, {"restart", restart}, {"ping-2", ping_2},
           {"ping-2-spin", ping_2_spin}, {"ping-4", ping_4}, {"ring", ring}, {"broadcast-2", broadcast_2},
           {"broadcast-4", broadcast_4}, {"nmi", nmi}, {"locked-2", locked_2}, {"locked-4", locked_4}, {"hypercall", hypercall})
