/* Prints machines and the end of runs, as text or JSON. */
#include <stdio.h>
#include <stdlib.h>

#include <jansson.h>
#include <linux/kvm.h>

#include "cli/cli.h"
#include "cli/report.h"
#include "vmm/kvm.h"

static json_t *strings(const char *const *list, unsigned count) {
  json_t *a = json_array();
  for (unsigned i = 0; i < count; i++) json_array_append_new(a, json_string_nocheck(list[i]));
  return a;
}

static json_t *machine_object(const struct machine_config *c, const struct vmm *vmm) {
  json_t *o = json_object(), *disks = json_array();
  json_object_set_new(o, "accel", json_string(c->accel->name));
  json_object_set_new(o, "kernel", json_string_nocheck(c->kernel));
  json_object_set_new(o, "kernel_format", json_string_nocheck(machine_kernel_text(vmm)));
  json_object_set_new(o, "initrd", c->initrd ? json_string_nocheck(c->initrd) : json_null());
  json_object_set_new(o, "append", json_string_nocheck(c->append));
  json_object_set_new(o, "memory", json_integer((json_int_t)c->memory));
  json_object_set_new(o, "cpus", json_integer(c->cpus));
  json_object_set_new(o, "cpu", json_string_nocheck(c->cpu));
  for (unsigned i = 0; i < c->disk_count; i++) {
    json_t *d = json_object();
    json_object_set_new(d, "path", json_string_nocheck(c->disks[i].path));
    json_object_set_new(d, "readonly", json_boolean(c->disks[i].readonly));
    json_array_append_new(disks, d);
  }
  json_object_set_new(o, "disks", disks);
  json_object_set_new(o, "net", strings(c->nets, c->net_count));
  json_object_set_new(o, "console", json_string_nocheck(c->console));
  json_object_set_new(o, "virtio_console", c->virtio_console ? json_string_nocheck(c->virtio_console) : json_null());
  json_object_set_new(o, "rng", json_boolean(c->rng));
  json_object_set_new(o, "debug_exit", json_boolean(c->debug_exit));
  json_object_set_new(o, "no_reboot", json_boolean(c->no_reboot));
  return o;
}

static void print_json(json_t *o, FILE *out, size_t flags) {
  char *text = json_dumps(o, flags);
  fprintf(out, "%s\n", text ? text : "{}");
  free(text);
  json_decref(o);
}

static void print_machine(const struct machine_config *c, const struct vmm *vmm) {
  printf("accelerator  %s\n", c->accel->name);
  printf("kernel       %s (%s)\n", c->kernel, machine_kernel_text(vmm));
  if (c->initrd) printf("initrd       %s\n", c->initrd);
  printf("append       %s\n", c->append);
  printf("memory       %.6g MiB\n", (double)c->memory / (1 << 20));
  printf("cpus         %u (%s)\n", c->cpus, c->cpu);
  for (unsigned i = 0; i < c->disk_count; i++)
    printf("disk         %s%s\n", c->disks[i].path, c->disks[i].readonly ? " (read-only)" : "");
  for (unsigned i = 0; i < c->net_count; i++) printf("net          %s\n", c->nets[i]);
  printf("console      %s\n", c->console);
  if (c->virtio_console) printf("hvc0         %s\n", c->virtio_console);
  if (c->rng) puts("rng          the host's");
  if (c->debug_exit) puts("debug exit   ports 0x501 and 0xf4");
}

void report_machine(const struct machine_config *config, const struct vmm *vmm, bool json) {
  if (json)
    print_json(machine_object(config, vmm), stdout, JSON_INDENT(2));
  else
    print_machine(config, vmm);
}

/* Exit reasons that a run can have many of. */
static const struct {
  unsigned reason;
  const char *name;
} exit_names[] = {{KVM_EXIT_IO, "io"}, {KVM_EXIT_MMIO, "mmio"}, {KVM_EXIT_INTR, "intr"}, {KVM_EXIT_HLT, "hlt"}};

static json_t *end_object(const struct machine_config *c, const struct machine_end *end) {
  json_t *o = json_object(), *exits = json_object();
  json_object_set_new(o, "end", json_string(machine_end_name(end->code)));
  json_object_set_new(o, "code", json_integer(end->code));
  json_object_set_new(o, "reason", json_string_nocheck(end->reason));
  json_object_set_new(o, "accel", json_string(c->accel->name));
  json_object_set_new(o, "seconds", json_real((double)end->run_ns / 1e9));
  json_object_set_new(o, "resets", json_integer(end->resets));
  for (size_t i = 0; i < sizeof(exit_names) / sizeof(exit_names[0]); i++)
    json_object_set_new(exits, exit_names[i].name, json_integer((json_int_t)end->exits[exit_names[i].reason]));
  json_object_set_new(o, "exits", exits);
  return o;
}

void report_end(const struct machine_config *config, const struct machine_end *end, bool json) {
  if (json)
    print_json(end_object(config, end), stderr, JSON_COMPACT);
  else
    complain("%s: %s", machine_end_name(end->code), end->reason);
}
