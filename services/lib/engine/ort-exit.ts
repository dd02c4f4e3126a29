/**
 * Ends a process whose device hangs. Node waits at its end for the threads of its pool, so that a run that never
 * returns would keep the process for good, past the drain timeout and deaf to SIGTERM: whoever waits to start it again
 * would wait in vain.
 */
import koffi from 'koffi';
import { runtime } from './ort-api.ts';

const LIBC: Readonly<Partial<Record<NodeJS.Platform, string>>> = {
  linux: 'libc.so.6',
  darwin: '/usr/lib/libSystem.B.dylib',
};

let watched = false;

/**
 * Makes the process end at its exit although a thread hangs, with its exit code and after all that others do at exit.
 * The first call counts.
 * @param hangs says at exit whether a run is under way.
 */
export function endAlthoughHung(hangs: () => boolean): void {
  const path = LIBC[process.platform];
  if (watched || path === undefined) return;
  watched = true;
  runtime(); // first, since it configures koffi, which is possible only before any library is loaded
  const end = koffi.load(path).func('_exit', 'void', ['int']);
  process.on('exit', (code) => {
    if (hangs()) end(code);
  });
}
