/** Pins the process to CPU cores: the runtime's threads and all others. */
import { readdirSync } from 'node:fs';
import koffi from 'koffi';
import { ServingError } from '../process/errors.ts';
import { runtime } from './ort-api.ts';

const ESRCH = koffi.os.errno['ESRCH'];

/**
 * Pins all threads of this process; threads that are made later inherit it. Works on Linux only.
 * @throws ServingError config_invalid on other systems, and if this process may use none of `cpus`.
 */
export function pinProcess(cpus: readonly number[]): void {
  if (process.platform !== 'linux') {
    throw new ServingError(
      'config_invalid',
      `--cpus works on Linux only, and this is ${process.platform}: leave it out`,
    );
  }
  runtime(); // first, since it configures koffi, which is possible only before any library is loaded
  const libc = koffi.load('libc.so.6');
  const setAffinity = libc.func('sched_setaffinity', 'int', ['int', 'size_t', 'void *']);
  const mask = new Uint8Array(new ArrayBuffer(Math.ceil((Math.max(...cpus) + 1) / 64) * 8));
  for (const cpu of cpus) mask[cpu >> 3]! |= 1 << (cpu & 7);
  const pinned = new Set<number>();
  // Repeats until no thread is new: a thread that was not pinned yet may have started another.
  for (let before = -1; before < pinned.size; ) {
    before = pinned.size;
    for (const thread of readdirSync('/proc/self/task').map(Number)) {
      if (pinned.has(thread)) continue;
      if (setAffinity(thread, mask.byteLength, mask) !== 0 && koffi.errno() !== ESRCH) {
        throw new ServingError('config_invalid', `--cpus ${cpus.join(',')}: this process may use none of these cores`);
      }
      pinned.add(thread);
    }
  }
}
