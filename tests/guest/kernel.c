/* What kernels do all the time, often enough to be translated: interrupt flag, SMAP, SWAPGS, SYSCALL and SYSRET, RFLAGS, time,
 * instructions in two pages.
 *
 * Each loop runs until it is hot, and says in every round what it expects.
 */
#include "inside.h"

enum { ROUNDS = 200 };

#define CR4_TSD            0x4ull
#define CR4_SMAP           0x200000ull
#define CR4_PKE            0x400000ull
#define MSR_STAR           0xc0000081u
#define MSR_LSTAR          0xc0000082u
#define MSR_FMASK          0xc0000084u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define MSR_GS_BASE        0xc0000101u

static volatile u32 interrupts;
static volatile u64 interrupted_ip;

HANDLER on_interrupt(struct frame *f) {
  interrupts = interrupts + 1;
  interrupted_ip = f->rip;
  eoi();
}

/* ---- interrupt flag ---- */

#define VECTOR 0x40

static void pend(void) {
  apic_write(A_ICR, ICR_TO_SELF | ICR_ASSERT | VECTOR);
  settle();
}

static void guest_sti(void) {
  apic_on();
  for (u32 n = 1; n <= ROUNDS; n++) {
    u64 behind;
    pend();
    __asm__ volatile("sti\n cli\n nop" ::: "memory"); /* the shadow hides all of the window */
    EXPECT_EQ(interrupts, 3 * n - 3);
    __asm__ volatile("sti\n nop\n 1: cli\n lea 1b(%%rip), %0" : "=r"(behind)::"memory");
    EXPECT_EQ(interrupts, 3 * n - 2);
    EXPECT_EQ(interrupted_ip, behind);
    pend();
    __asm__ volatile("sti\n hlt\n 1: cli\n lea 1b(%%rip), %0" : "=r"(behind)::"memory"); /* comes as HLT is done, not before it */
    EXPECT_EQ(interrupts, 3 * n - 1);
    EXPECT_EQ(interrupted_ip, behind);
    pend();
    /* Windows of one instruction in a loop that is otherwise closed. */
    __asm__ volatile("mov $1000, %%ecx\n 1: sti\n pause\n cli\n cmp %1, %0\n je 2f\n dec %%ecx\n jne 1b\n 2:" ::"m"(interrupts),
                     "r"(3 * n)
                     : "rcx", "memory", "cc");
    EXPECT_EQ(interrupts, 3 * n);
  }
  /* A timer that comes while nothing waits. */
  apic_write(A_TDCR, 0xb);
  apic_write(A_LVT_TIME, VECTOR);
  for (u32 n = 1; n <= 20; n++) {
    apic_write(A_TMICT, 100000);
    for (u64 end = rdtsc() + 5000 * ticks_per_ms; interrupts < 3 * ROUNDS + n && rdtsc() < end;)
      __asm__ volatile("sti\n pause\n cli" ::: "memory");
    EXPECT_EQ(interrupts, 3 * ROUNDS + n);
  }
  done();
}

/* ---- SMAP ---- */

static volatile u8 got;

static void guest_smap(void) {
  u64 at = GUEST_USER + 0x100;
  *(volatile u8 *)at = 7;
  write_cr4(read_cr4() | CR4_SMAP);
  for (unsigned n = 0; n < ROUNDS; n++) {
    got = 0;
    u32 fault = TRY("stac\n movb (%0), %%al\n movb %%al, got(%%rip)\n clac\n movb (%0), %%al", "r"(at));
    EXPECT_EQ(fault, PF(ERR_P));
    EXPECT_EQ(fault_address, at);
    EXPECT_EQ(got, 7);
    EXPECT_EQ(TRY("stac\n clac\n stac\n stac\n movb (%0), %%al\n clac\n clac", "r"(at)), NO_FAULT);
    EXPECT_EQ(TRY("stac\n jmp 2f\n 2: clac\n jmp 3f\n 3: movb $1, (%0)", "r"(at)), PF(ERR_P | ERR_W));
    u64 ac;
    __asm__ volatile("stac\n pushfq\n pop %0\n clac" : "=r"(ac)::"memory");
    EXPECT_EQ(ac >> 18 & 1, 1);
  }
  write_cr4(read_cr4() & ~CR4_SMAP);
  for (unsigned n = 0; n < ROUNDS; n++) EXPECT_EQ(TRY("stac\n movb (%0), %%al\n clac\n movb (%0), %%al", "r"(at)), NO_FAULT);
  done();
}

/* ---- segment bases ---- */

static u64 first = 1, second = 2;

static void guest_swapgs(void) {
  wrmsr(MSR_GS_BASE, (u64)(uintptr_t)&first);
  wrmsr(MSR_KERNEL_GS_BASE, (u64)(uintptr_t)&second);
  for (unsigned n = 0; n < ROUNDS; n++) {
    u64 a, b, c;
    __asm__ volatile("mov %%gs:0, %0\n swapgs\n mov %%gs:0, %1\n swapgs\n mov %%gs:0, %2"
                     : "=&r"(a), "=&r"(b), "=&r"(c)::"memory");
    EXPECT_EQ(a, 1);
    EXPECT_EQ(b, 2);
    EXPECT_EQ(c, 1);
    __asm__ volatile("swapgs");
    EXPECT_EQ(rdmsr(MSR_GS_BASE), (u64)(uintptr_t)&second);
    __asm__ volatile("swapgs");
  }
  done();
}

/* ---- RFLAGS and high bytes ---- */

static u64 flags_after(u64 in) {
  u64 out;
  __asm__ volatile("push %1\n popfq\n pushfq\n pop %0" : "=r"(out) : "r"(in) : "memory", "cc");
  return out;
}

static void guest_flags(void) {
  u64 seed = 1;
  for (unsigned n = 0; n < ROUNDS; n++) {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    u64 want = (seed >> 20 & 0x244cd5) | 2, out; /* ID, AC, NT, DF, OF, SF, ZF, AF, PF, CF */
    EXPECT_EQ(flags_after(want), want);
    __asm__ volatile("std\n pushfq\n cld\n pushfq\n pop %%rcx\n pop %0\n xor %%rcx, %0" : "=r"(out)::"rcx", "memory", "cc");
    EXPECT_EQ(out, 0x400);
    /* ADD sets the flags, IF is looked at in AH, and PUSHFQ shows the flags of the first. */
    u64 sum = seed, high;
    __asm__ volatile("add %3, %0\n pushfq\n pushfq\n pop %%rax\n and $2, %%ah\n movzbl %%ah, %k1\n pop %2"
                     : "+r"(sum), "=&r"(high), "=&r"(out)
                     : "r"(seed << 7)
                     : "rax", "memory", "cc");
    EXPECT_EQ(high, 0);
    EXPECT_EQ(out & 1, sum < seed);
    EXPECT_EQ(out >> 6 & 1, !sum);
    EXPECT_EQ(out >> 7 & 1, sum >> 63);
  }
  flags_after(2);
  done();
}

/* ---- time ---- */

static void guest_time(void) {
  static const u8 user[] = {0x0f, 0x31, 0xcd, 0x81}; /* rdtsc; int $0x81 */
  for (unsigned k = 0; k < sizeof(user); k++) ((volatile u8 *)GUEST_USER)[k] = user[k];
  u64 last = 0;
  for (unsigned n = 0; n < ROUNDS; n++) {
    u32 lo, hi, aux;
    __asm__ volatile("rdtscp" : "=a"(lo), "=d"(hi), "=c"(aux));
    u64 now = lo | (u64)hi << 32, then = rdtsc();
    EXPECT(now > last && then > now);
    EXPECT(aux == 0x1234);
    last = then;
    EXPECT_EQ(user_run(GUEST_USER, 0), NO_FAULT);
  }
  write_cr4(read_cr4() | CR4_TSD);
  EXPECT_EQ(user_run(GUEST_USER, 0), GP0);
  EXPECT(rdtsc() > last);
  write_cr4(read_cr4() & ~CR4_TSD);
  EXPECT_EQ(user_run(GUEST_USER, 0), NO_FAULT);
  wrmsr(0x10, 5); /* TSC */
  EXPECT(rdtsc() < last);
  done();
}

/* ---- SYSCALL and SYSRET ---- */

static volatile u64 calls, seen_rcx, seen_r11, seen_flags, return_to, return_flags;

/* The entry of the kernel: counts, keeps what it found, and returns with the flags it is told. */
__asm__(".pushsection .text\n entry: push %rax\n pushfq\n pop %rax\n mov %rax, seen_flags(%rip)\n mov %rcx, seen_rcx(%rip)\n mov "
        "%r11, seen_r11(%rip)\n"
        "incq calls(%rip)\n mov return_to(%rip), %rax\n test %rax, %rax\n je 1f\n mov %rax, %rcx\n 1: mov return_flags(%rip), "
        "%rax\n test %rax, %rax\n"
        "je 1f\n mov %rax, %r11\n 1: pop %rax\n sysretq\n .popsection");
extern const u8 entry[];

/* The program: loads its flags from RBX, calls RBP times, ends.  It uses the kernel's stack, which is the user's here. */
static const u8 program[] = {0x53,                         /* 1: push %rbx */
                             0x9d,                         /* popfq */
                             0x0f, 0x05,                   /* syscall */
                             0xff, 0x0d, 0xf6, 0x01, 0, 0, /* decl counter */
                             0x75, 0xf4,                   /* jne 1b */
                             0xcd, 0x81};                  /* int $0x81 */
#define COUNTER (*(volatile u32 *)(GUEST_USER + 0x200))

static u32 program_run(u32 times, u64 flags) {
  COUNTER = times;
  return user_run(GUEST_USER, flags);
}

static void guest_syscall(void) {
  for (unsigned k = 0; k < sizeof(program); k++) ((volatile u8 *)GUEST_USER)[k] = program[k];
  wrmsr(0xc0000080, rdmsr(0xc0000080) | 1);
  wrmsr(MSR_STAR, (u64)(SEL_FREE | 3) << 48 | (u64)SEL_CODE64 << 32);
  wrmsr(MSR_LSTAR, (u64)(uintptr_t)entry);
  wrmsr(MSR_FMASK, 0x647d5 & ~0x40000ull);
  apic_on();
  static const u64 flags[] = {2, 0xed7 & ~0x200, 0x893, 0x200046, 0x2};
  for (unsigned k = 0; k < sizeof(flags) / sizeof(flags[0]); k++) {
    u64 before = calls;
    EXPECT_EQ(program_run(ROUNDS, flags[k]), NO_FAULT);
    EXPECT_EQ(calls, before + ROUNDS);
    EXPECT_EQ(seen_rcx, GUEST_USER + 4);
    EXPECT_EQ(seen_r11, flags[k]);
    EXPECT_EQ(seen_flags, (flags[k] & ~0x7d5ull) | 2);
  }
  /* Interrupts that wait come when SYSRET lets them. */
  u32 was = interrupts;
  pend();
  EXPECT_EQ(interrupts, was);
  return_flags = 0x202;
  EXPECT_EQ(program_run(1, 2), NO_FAULT);
  EXPECT_EQ(interrupts, was + 1);
  EXPECT_EQ(interrupted_ip, GUEST_USER + 4);
  /* A single step that SYSRET brings; an address that is none. */
  return_flags = 0x102;
  EXPECT_EQ(program_run(1, 2), FAULT(1, 0));
  EXPECT_EQ(fault_ip, GUEST_USER + 4);
  return_flags = 0;
  return_to = 1ull << 47;
  EXPECT_EQ(program_run(1, 2), GP0);
  return_to = 0;
  EXPECT_EQ(program_run(1, 2), NO_FAULT);
  /* Without EFER.SCE there is no such instruction. */
  wrmsr(0xc0000080, rdmsr(0xc0000080) & ~1ull);
  EXPECT_EQ(program_run(1, 2), FAULT(6, 0));
  EXPECT_EQ(fault_ip, GUEST_USER + 2);
  done();
}

/* ---- an instruction in two pages ---- */

#define AREA 0x40000000ul

static u64 *entry_of(u64 lin) {
  u64 *table = (u64 *)(uintptr_t)(read_cr3() & 0xffffffffff000);
  for (unsigned n = 4; n > 1; n--) table = (u64 *)(uintptr_t)(table[lin >> (3 + 9 * n) & 511] & 0xffffffffff000);
  return &table[lin >> 12 & 511];
}

static void guest_crossing(void) {
  /* Frames 0x200000; 0x201000 and 0x202000 take turns behind it: mov $imm, %eax; ret, after a NOP and a jump in the first page.
   */
  volatile u8 *a = (volatile u8 *)0x200000, *b = (volatile u8 *)0x201000, *c = (volatile u8 *)0x202000;
  a[0xff0] = 0xeb, a[0xff1] = 0x0c, a[0xffd] = 0x90, a[0xffe] = 0xb8, a[0xfff] = 0x11;
  b[0] = 0x22, b[1] = 0, b[2] = 0, b[3] = 0xc3;
  c[0] = 0x33, c[1] = 0, c[2] = 0, c[3] = 0xc3;
  for (unsigned n = 0; n < 20; n++) {
    *(volatile u64 *)entry_of(AREA + 0x1000) = (n & 1 ? 0x202000 : 0x201000) | 3;
    invlpg(AREA + 0x1000);
    for (unsigned k = 0; k < 50; k++) {
      EXPECT_EQ(((u32(*)(void))(AREA + 0xffe))(), n & 1 ? 0x3311 : 0x2211);
      EXPECT_EQ(((u32(*)(void))(AREA + 0xffd))(), n & 1 ? 0x3311 : 0x2211);
      EXPECT_EQ(((u32(*)(void))(AREA + 0xff0))(), n & 1 ? 0x3311 : 0x2211);
    }
  }
  b[0] = 0x44;
  *(volatile u64 *)entry_of(AREA + 0x1000) = 0x201000 | 3;
  invlpg(AREA + 0x1000);
  for (unsigned k = 0; k < 50; k++) EXPECT_EQ(((u32(*)(void))(AREA + 0xff0))(), 0x4411);
  b[0] = 0x55;
  for (unsigned k = 0; k < 50; k++) EXPECT_EQ(((u32(*)(void))(AREA + 0xff0))(), 0x5511);
  *(volatile u64 *)entry_of(AREA + 0x1000) = 0;
  invlpg(AREA + 0x1000);
  EXPECT_EQ(try_call(AREA + 0xff0), PF(ERR_I));
  EXPECT_EQ(fault_address, AREA + 0x1000);
  done();
}

/* ---- host side ---- */

static void run(void (*f)(void)) {
  struct guest *g = start_function(f);
  inside_catch(g);
  interrupts = 0;
  guest_idt64(g, VECTOR, 0xe, 0, SEL_CODE64, (u64)(uintptr_t)on_interrupt, 0);
  guest_gdt(g, SEL_FREE, 0, ~0u, D_CODE | D_DPL(3), D_G | D_32);
  guest_gdt(g, SEL_FREE + 8, 0, ~0u, D_DATA | D_DPL(3), D_G | D_32);
  guest_gdt(g, SEL_FREE + 16, 0, ~0u, D_CODE | D_DPL(3), D_G | D_64);
  guest_map(g, AREA, 0x200000, 0x2000, P_W);
  struct {
    struct kvm_msrs h;
    struct kvm_msr_entry e;
  } m = {.h.nmsrs = 1, .e = {.index = 0xc0000103, .data = 0x1234}}; /* TSC_AUX */
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_MSRS, &m), 1);
  inside_run(g);
}

#define TEST(name)                                                                                                               \
  static void run_##name(void) {                                                                                                 \
    run(guest_##name);                                                                                                           \
  }
TEST(sti)
TEST(smap)
TEST(swapgs)
TEST(flags)
TEST(time)
TEST(syscall)
TEST(crossing)

GUEST_MAIN({"sti", run_sti}, {"smap", run_smap}, {"swapgs", run_swapgs}, {"flags", run_flags}, {"time", run_time},
           {"syscall", run_syscall}, {"crossing", run_crossing})
