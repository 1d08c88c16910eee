/* Accesses to guest-physical memory without a slot: which exits one instruction makes, with what addresses, lengths and data. */
#include <string.h>
#include "harness.h"

/* Linear pages: RAM, two device pages apart from one another, RAM, a read-only slot. */
#define LIN    0x50000000u
#define RAM1   0x200000u
#define DEV1   0x10000000u
#define DEV2   0x20005000u
#define RAM2   0x201000u
#define ROM    0x30000000u
#define L_DEV1 (LIN + 0x1000)
#define L_DEV2 (LIN + 0x2000)
#define L_RAM2 (LIN + 0x3000)
#define L_ROM  (LIN + 0x4000)

static u8 rom[0x1000] __attribute__((aligned(4096)));

static struct guest *start(void) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_map(g, LIN, RAM1, 0x1000, P_W);
  guest_map(g, L_DEV1, DEV1, 0x1000, P_W);
  guest_map(g, L_DEV2, DEV2, 0x1000, P_W);
  guest_map(g, L_RAM2, RAM2, 0x1000, P_W);
  guest_map(g, L_ROM, ROM, 0x1000, P_W);
  struct kvm_userspace_memory_region region = {
      .slot = 7, .flags = KVM_MEM_READONLY, .guest_phys_addr = ROM, .memory_size = 0x1000, .userspace_addr = (u64)(uintptr_t)rom};
  CHECK_EQ(guest_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
  return g;
}

/* Runs one instruction and then a report; RBX is its address, RAX and RCX operands. */
static void begin(struct guest *g, const u8 *code, unsigned size, u64 rbx, u64 rax) {
  static const u8 end[] = {0xe6, GUEST_PORT};
  guest_load(g, GUEST_CODE, code, size);
  guest_load(g, GUEST_CODE + size, end, sizeof(end));
  struct kvm_regs r = {
      .rip = GUEST_CODE, .rflags = 2, .rbx = rbx, .rax = rax, .rsp = GUEST_STACK0, .rsi = rbx, .rdi = rbx, .rcx = 0x55};
  guest_set_regs(g, &r);
}
#define BEGIN(g, rbx, rax, ...)                                                                                                  \
  do {                                                                                                                           \
    static const u8 code_[] = {__VA_ARGS__};                                                                                     \
    begin(g, code_, sizeof(code_), rbx, rax);                                                                                    \
  } while (0)

static bool exits(struct guest *g, u64 gpa, unsigned len, bool write) {
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_MMIO);
  if (g->run->exit_reason != KVM_EXIT_MMIO) return false;
  CHECK_EQ(g->run->mmio.phys_addr, gpa);
  CHECK_EQ(g->run->mmio.len, len);
  CHECK_EQ(g->run->mmio.is_write, write);
  return true;
}

static void read_exit(struct guest *g, u64 gpa, unsigned len, u64 answer) {
  if (exits(g, gpa, len, false)) memcpy(g->run->mmio.data, &answer, len);
}
static void write_exit(struct guest *g, u64 gpa, unsigned len, u64 want) {
  u64 got = 0;
  if (!exits(g, gpa, len, true)) return;
  memcpy(&got, g->run->mmio.data, len);
  CHECK_EQ(got, want);
}
/* No exit is left: the report, with RAX as given. */
static void end(struct guest *g, u64 rax) {
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
  CHECK_EQ(guest_regs(g).rax, rax);
}

#define V 0x1122334455667788ull

static void simple(void) {
  struct guest *g = start();
  for (unsigned off = 0; off < 16; off++) {
    BEGIN(g, L_DEV1 + off, 0, 0x48, 0x8b, 0x03); /* mov (%rbx), %rax */
    read_exit(g, DEV1 + off, 8, V);
    CHECK_EQ(guest_regs(g).rip, GUEST_CODE); /* nothing has happened yet */
    end(g, V);
    BEGIN(g, L_DEV1 + off, V, 0x66, 0x89, 0x03); /* mov %ax, (%rbx) */
    write_exit(g, DEV1 + off, 2, 0x7788);
    CHECK_EQ(guest_regs(g).rip, GUEST_CODE + 3); /* it is over */
    end(g, V);
  }
  BEGIN(g, L_DEV1, V, 0x8a, 0x03); /* mov (%rbx), %al */
  read_exit(g, DEV1, 1, 0xaa);
  end(g, 0x11223344556677aa);
  BEGIN(g, L_DEV1, V, 0x0f, 0xbe, 0x03); /* movsbl (%rbx), %eax */
  read_exit(g, DEV1, 1, 0x80);
  end(g, 0xffffff80);
  guest_free(g);
}

/* Each page its part: RAM at once, the device by an exit of exactly the rest. */
static void split(void) {
  struct guest *g = start();
  for (unsigned k = 1; k < 8; k++) {
    u64 low = V & ((1ull << 8 * k) - 1), high = V >> 8 * k;
    guest_write(g, RAM1 + 0x1000 - k, k, low);
    BEGIN(g, L_DEV1 - k, 0, 0x48, 0x8b, 0x03); /* RAM, device */
    read_exit(g, DEV1, 8 - k, high);
    end(g, V);
    BEGIN(g, L_DEV1 - k, ~V, 0x48, 0x89, 0x03);
    write_exit(g, DEV1, 8 - k, ~high & (~0ull >> 8 * k));
    CHECK_EQ(guest_read(g, RAM1 + 0x1000 - k, k), ~low & ~(~0ull << 8 * k));
    end(g, ~V);
    guest_write(g, RAM2, 8 - k, high);
    BEGIN(g, L_RAM2 - k, 0, 0x48, 0x8b, 0x03); /* device, RAM */
    read_exit(g, DEV2 + 0x1000 - k, k, low);
    end(g, V);
    BEGIN(g, L_RAM2 - k, V, 0x48, 0x89, 0x03);
    write_exit(g, DEV2 + 0x1000 - k, k, low);
    CHECK_EQ(guest_read(g, RAM2, 8 - k), high);
    end(g, V);
    BEGIN(g, L_DEV2 - k, 0, 0x48, 0x8b, 0x03); /* two devices */
    read_exit(g, DEV1 + 0x1000 - k, k, low);
    read_exit(g, DEV2, 8 - k, high);
    end(g, V);
    BEGIN(g, L_DEV2 - k, V, 0x48, 0x89, 0x03);
    write_exit(g, DEV1 + 0x1000 - k, k, low);
    write_exit(g, DEV2, 8 - k, high);
    end(g, V);
  }
  guest_free(g);
}

/* More than 8 bytes: 8 at a time. */
static void wide(void) {
  struct guest *g = start();
  for (unsigned k = 0; k < 16; k += 5) { /* bytes on the first page */
    u64 at = k ? L_DEV2 - k : L_DEV1, first = k ? DEV1 + 0x1000 - k : DEV1;
    BEGIN(g, at, 0, 0xf3, 0x0f, 0x6f, 0x03, 0x66, 0x48, 0x0f, 0x7e, 0xc0); /* movdqu (%rbx), %xmm0; movq %xmm0, %rax */
    if (!k) {
      read_exit(g, first, 8, V);
      read_exit(g, first + 8, 8, ~V);
      end(g, V);
      continue;
    }
    for (unsigned done = 0; done < k; done += 8) read_exit(g, first + done, k - done < 8 ? k - done : 8, V >> 8 * done % 64);
    for (unsigned done = 0; done < 16 - k; done += 8)
      read_exit(g, DEV2 + done, 16 - k - done < 8 ? 16 - k - done : 8, k < 8 && !done ? V >> 8 * k : 0);
    end(g, V);
  }
  BEGIN(g, L_DEV1, V, 0x66, 0x48, 0x0f, 0x6e, 0xc0, 0xf3, 0x0f, 0x7f, 0x03); /* movq %rax, %xmm0; movdqu %xmm0, (%rbx) */
  write_exit(g, DEV1, 8, V);
  write_exit(g, DEV1 + 8, 8, 0);
  end(g, V);
  guest_free(g);
}

/* Read, then write. */
static void modify(void) {
  struct guest *g = start();
  BEGIN(g, L_DEV1, 5, 0x01, 0x03); /* add %eax, (%rbx) */
  read_exit(g, DEV1, 4, 0xfffffffe);
  write_exit(g, DEV1, 4, 3);
  CHECK_EQ(guest_regs(g).rflags & 1, 1);
  end(g, 5);
  BEGIN(g, L_DEV1, 5, 0xf0, 0x48, 0x0f, 0xc1, 0x03); /* lock xadd %rax, (%rbx) */
  read_exit(g, DEV1, 8, V);
  write_exit(g, DEV1, 8, V + 5);
  end(g, V);
  BEGIN(g, L_DEV1, 7, 0x87, 0x03); /* xchg %eax, (%rbx) */
  read_exit(g, DEV1, 4, 9);
  write_exit(g, DEV1, 4, 7);
  end(g, 9);
  BEGIN(g, L_DEV2 - 3, 1, 0x48, 0x01, 0x03); /* across two devices */
  read_exit(g, DEV1 + 0xffd, 3, 0xffffff);
  read_exit(g, DEV2, 5, 0xffffffffff);
  write_exit(g, DEV1 + 0xffd, 3, 0);
  write_exit(g, DEV2, 5, 0);
  end(g, 1);
  BEGIN(g, L_DEV1, 5, 0xf7, 0x03, 1, 0, 0, 0); /* testl $1, (%rbx): no write */
  read_exit(g, DEV1, 4, 1);
  end(g, 5);
  guest_free(g);
}

/* From device to device, and stacks there. */
static void two_operands(void) {
  struct guest *g = start();
  BEGIN(g, L_DEV1, 5, 0xa5); /* movsl */
  read_exit(g, DEV1, 4, 0x12345678);
  write_exit(g, DEV1, 4, 0x12345678);
  CHECK_EQ(guest_regs(g).rsi, L_DEV1 + 4);
  end(g, 5);
  BEGIN(g, L_DEV1, 5, 0xa7); /* cmpsl: both reads, the second operand first or last */
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_MMIO);
  memset(g->run->mmio.data, 3, 4);
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_MMIO);
  memset(g->run->mmio.data, 3, 4);
  end(g, 5);
  CHECK_EQ(guest_regs(g).rflags & 0x40, 0x40);
  BEGIN(g, L_DEV1, 5, 0xff, 0x33); /* push (%rbx) */
  read_exit(g, DEV1, 8, V);
  end(g, 5);
  CHECK_EQ(guest_stack(g, 0, 8), V);
  BEGIN(g, L_DEV1 + 0x100, V, 0x48, 0x89, 0xdc, 0x50); /* mov %rbx, %rsp; push %rax */
  write_exit(g, DEV1 + 0xf8, 8, V);
  end(g, V);
  BEGIN(g, L_DEV1 + 0x100, 0, 0x48, 0x89, 0xdc, 0x8f, 0x00); /* pop (%rax): to linear address 0 */
  read_exit(g, DEV1 + 0x100, 8, V);
  end(g, 0);
  CHECK_EQ(guest_read(g, 0, 8), V);
  guest_free(g);
}

/* A repeated store: one exit for each element, the registers in step. */
static void repeated(void) {
  struct guest *g = start();
  BEGIN(g, L_DEV1 - 4, 0xab, 0xb9, 4, 0, 0, 0, 0x66, 0xf3, 0xab); /* mov $4, %ecx; rep stosw */
  for (unsigned n = 0; n < 2; n++) {
    write_exit(g, DEV1 + 2 * n, 2, 0xab);
    CHECK_EQ(guest_regs(g).rdi, L_DEV1 + 2 * n + 2);
    CHECK_EQ(guest_regs(g).rcx, 1 - n);
  }
  end(g, 0xab);
  CHECK_EQ(guest_read(g, RAM1 + 0xffc, 4), 0x00ab00ab);
  BEGIN(g, L_DEV1, 0, 0xb9, 3, 0, 0, 0, 0xf3, 0xac); /* rep lodsb */
  for (unsigned n = 0; n < 3; n++) {
    read_exit(g, DEV1 + n, 1, 7 + n);
    CHECK_EQ(guest_regs(g).rcx, 3 - n);
  }
  end(g, 9);
  guest_free(g);
}

/* A read-only slot: reads are memory's, writes the client's. */
static void read_only(void) {
  struct guest *g = start();
  memset(rom, 0x11, sizeof(rom));
  BEGIN(g, L_ROM + 5, 0, 0x8b, 0x03);
  end(g, 0x11111111);
  BEGIN(g, L_ROM + 5, 0x22, 0x89, 0x03);
  write_exit(g, ROM + 5, 4, 0x22);
  end(g, 0x22);
  BEGIN(g, L_ROM + 8, 1, 0xf0, 0x01, 0x03);
  write_exit(g, ROM + 8, 4, 0x11111112);
  end(g, 1);
  BEGIN(g, L_ROM + 0, 3, 0x0f, 0xc1, 0x03); /* xadd %eax, (%rbx) */
  write_exit(g, ROM, 4, 0x11111114);
  end(g, 0x11111111);
  for (unsigned n = 0; n < sizeof(rom); n++) CHECK_EQ(rom[n], 0x11);
  /* Code may run there. */
  static const u8 code[] = {0xb8, 9, 0, 0, 0, 0xe6, GUEST_PORT};
  memcpy(rom, code, sizeof(code));
  BEGIN(g, L_ROM, 0, 0xff, 0xe3); /* jmp *%rbx */
  end(g, 9);
  guest_free(g);
}

/* Code on a device cannot run. */
static void fetch(void) {
  struct guest *g = start();
  BEGIN(g, L_DEV1, 0, 0xff, 0xe3);
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_INTERNAL_ERROR);
  CHECK_EQ(g->run->internal.suberror, KVM_INTERNAL_ERROR_EMULATION);
  CHECK_EQ(guest_regs(g).rip, L_DEV1);
  guest_free(g);
}

/* The client turns the vCPU away from the instruction instead of letting it have its answer. */
static void abandoned(void) {
  struct guest *g = start();
  BEGIN(g, L_DEV1, 1, 0x8b, 0x03);
  exits(g, DEV1, 4, false);
  BEGIN(g, L_DEV2, 2, 0x90, 0x8b, 0x03);
  read_exit(g, DEV2, 4, 0x77);
  end(g, 0x77);
  guest_free(g);
}

GUEST_MAIN({"simple", simple}, {"split", split}, {"wide", wide}, {"modify", modify}, {"two-operands", two_operands},
           {"repeated", repeated}, {"read-only", read_only}, {"fetch", fetch}, {"abandoned", abandoned})
