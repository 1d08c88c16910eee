/* Device accesses by guest instructions: chips in the library at once, the rest by exits to the client.
 *
 * Reads (and port accesses) stop the instruction; the answer is remembered and the instruction runs again from its start, finding it.
 * Writes are queued and leave after the instruction has completed, RIP behind it, as KVM does it.
 */
#include <errno.h>
#include <string.h>
#include "core/iobus.h"
#include "core/stats.h"
#include "x86/mmu/access.h"
#include "x86/mmu/io.h"
#include "x86/mmu/walk.h"
#include "x86/x86.h"

static void fill_mmio(struct x86_vcpu *c, const struct x86_io_frag *f, bool write) {
  struct kvm_run *run = c->core.run;
  run->exit_reason = KVM_EXIT_MMIO;
  run->mmio.phys_addr = f->gpa;
  run->mmio.len = f->len;
  run->mmio.is_write = write;
  memset(run->mmio.data, 0, sizeof(run->mmio.data));
  if (write) memcpy(run->mmio.data, f->data, f->len);
}

void x86_io_forget(struct x86_vcpu *c) {
  struct x86_io *io = &c->io;
  io->n_reads = io->read_pos = 0;
  io->read_wait = io->pio_wait = io->pio_done = false;
}

/* The client answered: hand the data to the instruction, which runs again alone, before any event is taken. */
static int complete_read(struct x86_vcpu *c) {
  struct x86_io *io = &c->io;
  if (io->read_wait) {
    struct x86_io_frag *f = &io->reads[io->n_reads++];
    memcpy(f->data, c->core.run->mmio.data, f->len);
  }
  if (io->pio_wait) {
    io->pio_value = 0;
    if (io->pio_in) memcpy(&io->pio_value, c->core.pio_data, io->pio_size);
    io->pio_done = true;
  }
  io->read_wait = io->pio_wait = false;
  io->read_pos = 0;
  /* The client may have moved RIP: then the instruction is not ours any more (as kvm_is_linear_rip() in KVM). */
  if (io->lin_ip != x86_linear_ip(c)) {
    x86_io_forget(c);
    return X86_OK;
  }
  int r = x86_run_one(c);
  if (r != X86_EXIT || !(io->read_wait || io->pio_wait)) x86_io_forget(c);
  return r;
}

int x86_io_read(struct x86_vcpu *c, gpa_t gpa, void *data, unsigned len) {
  struct x86_io *io = &c->io;
  if (io->read_pos < io->n_reads) { /* the instruction runs again */
    struct x86_io_frag *f = &io->reads[io->read_pos];
    if (f->gpa == gpa && f->len == len) {
      memcpy(data, f->data, len);
      io->read_pos++;
      return X86_OK;
    }
    io->n_reads = io->read_pos; /* another path this time (operands changed under it): the rest is void */
  }
  if (!io->n_reads) vcpu_stat_exit(&c->core, mmio_exits); /* once for all of its reads */
  if (x86_lapic_hit(c, gpa) && !x86_lapic_mmio_read(c, gpa, len, data)) return X86_OK;
  if (!io_bus_read(&c->core, BUS_MMIO, gpa, len, data)) return X86_OK;
  if (io->n_reads == X86_IO_FRAGS) return x86_gp0(c); /* no instruction reads more than 16 fragments */
  struct x86_io_frag *f = &io->reads[io->n_reads];
  f->gpa = gpa;
  f->len = (u8)len;
  io->read_wait = true;
  fill_mmio(c, f, false);
  c->complete_io = complete_read;
  return X86_EXIT;
}

void x86_io_write(struct x86_vcpu *c, gpa_t gpa, const void *data, unsigned len) {
  struct x86_io *io = &c->io;
  vcpu_stat_exit(&c->core, mmio_exits);
  if (x86_lapic_hit(c, gpa) && !x86_lapic_mmio_write(c, gpa, len, data)) return;
  if (!io_bus_write(&c->core, BUS_MMIO, gpa, len, data)) return;
  if (io->n_writes == X86_IO_FRAGS) return; /* cannot be: an instruction writes at most 64 bytes, in two parts */
  struct x86_io_frag *f = &io->writes[io->n_writes++];
  f->gpa = gpa;
  f->len = (u8)len;
  memcpy(f->data, data, len);
  c->stop |= X86_STOP_IO;
}

static int complete_write(struct x86_vcpu *c) {
  c->io.write_pos++;
  return x86_io_writes_exit(c);
}

int x86_io_writes_exit(struct x86_vcpu *c) {
  struct x86_io *io = &c->io;
  if (io->write_pos == io->n_writes) {
    io->write_pos = io->n_writes = 0;
    return X86_OK;
  }
  fill_mmio(c, &io->writes[io->write_pos], true);
  c->complete_io = complete_write;
  return X86_EXIT;
}

static int pio_exit(struct x86_vcpu *c, u16 port, unsigned size, unsigned count, bool in, u32 value) {
  struct kvm_run *run = c->core.run;
  struct x86_io *io = &c->io;
  run->exit_reason = KVM_EXIT_IO;
  run->io.direction = in ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT;
  run->io.size = (u8)size;
  run->io.port = port;
  run->io.count = count;
  run->io.data_offset = KVM_PIO_PAGE_OFFSET * PAGE_SIZE;
  memcpy(c->core.pio_data, &value, sizeof(value));
  io->port = port;
  io->pio_size = (u8)size;
  io->pio_count = count;
  io->pio_in = in;
  io->pio_wait = true;
  c->complete_io = complete_read;
  return X86_EXIT;
}

static bool pio_answered(struct x86_io *io, u16 port, unsigned size, bool in) {
  if (!io->pio_done) return false;
  io->pio_done = false;
  return io->port == port && io->pio_size == size && io->pio_in == in;
}

int x86_pio_in(struct x86_vcpu *c, u16 port, unsigned size, u32 *value) {
  *value = 0;
  if (pio_answered(&c->io, port, size, true)) {
    *value = c->io.pio_value;
    return X86_OK;
  }
  vcpu_stat_exit(&c->core, io_exits);
  if (!io_bus_read(&c->core, BUS_PIO, port, size, value)) return X86_OK;
  return pio_exit(c, port, size, 1, true, 0);
}

/* KVM's emulator reads ahead as much (arch/x86/kvm/kvm_emulate.h, struct read_cache). */
#define STRING_BYTES 1024u

int x86_pio_in_string(struct x86_vcpu *c, u16 port, unsigned size, unsigned max, unsigned *n, const u8 **data) {
  struct x86_io *io = &c->io;
  if (pio_answered(io, port, size, true)) {
    *n = MIN(io->pio_count, max);
    *data = c->core.pio_data;
    return X86_OK;
  }
  vcpu_stat_exit(&c->core, io_exits);
  *n = 1;
  *data = (u8 *)&io->pio_value;
  io->pio_value = 0;
  if (!io_bus_read(&c->core, BUS_PIO, port, size, &io->pio_value)) return X86_OK;
  return pio_exit(c, port, size, MIN(max, STRING_BYTES / size), true, 0);
}

int x86_pio_out(struct x86_vcpu *c, u16 port, unsigned size, u32 value) {
  if (pio_answered(&c->io, port, size, false)) return X86_OK;
  vcpu_stat_exit(&c->core, io_exits);
  if (!io_bus_write(&c->core, BUS_PIO, port, size, &value)) return X86_OK;
  return pio_exit(c, port, size, 1, false, value);
}
