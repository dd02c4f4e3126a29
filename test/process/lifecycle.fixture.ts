/** A service that does nothing but live: started by lifecycle.test.ts, misbehaving as its first argument says. */
import { once } from 'node:events';
import { Lifecycle } from '../../services/lib/process/lifecycle.ts';
import { createLogger } from '../../services/lib/process/log.ts';

const [behaviour, drainTimeoutMs] = process.argv.slice(2);
const log = createLogger('fixture', 'info');
// Stands for a process that still loads its code when its parent dies.
if (behaviour === 'orphaned-at-start' && process.connected) await once(process, 'disconnect');
const life = new Lifecycle(log, Number(drainTimeoutMs));

// This does what a listening socket does for a real service.
const alive = setInterval(() => {}, 1_000);

life.onStop('first', () => {
  log.info({ phase: life.phase }, 'stopped first');
  clearInterval(alive);
});
life.onStop('second', async () => {
  await new Promise((resolve) => setImmediate(resolve));
  log.info({ code: life.draining.reason.code }, 'stopped second');
});

life.onHangup(() => log.info('read again'));

// Stands for a running request: a drain waits for it until the test says that it has finished.
const requestDone = new Promise<void>((resolve) => process.once('SIGUSR2', resolve));
if (behaviour === 'busy') life.onStop('request', () => requestDone);
if (behaviour === 'hang') life.onStop('hanging', () => new Promise<void>(() => {}));
if (behaviour === 'stop-throws') {
  life.onStop('throwing', () => {
    throw new Error('cannot close');
  });
}
if (behaviour === 'stop-in-start') {
  life.draining.addEventListener('abort', () => {
    life.onStop('late', () => log.info('stopped late'));
    life.ready('late:1', 'late:2');
  });
  process.kill(process.pid, 'SIGTERM');
} else {
  life.ready('127.0.0.1:1', '127.0.0.1:2');
}
if (behaviour === 'throw') setImmediate(() => undefinedFunction());
if (behaviour === 'reject') void Promise.reject('no reason');

function undefinedFunction(): never {
  throw new Error('a bug');
}
