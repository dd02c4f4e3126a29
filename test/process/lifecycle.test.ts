/** Real processes and real signals, on the built files (`npm test` builds first). */
import { type ChildProcess, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const FIXTURE = join(PACKAGE_ROOT, 'dist/test/process/lifecycle.fixture.js');
const NO_LIMIT = 60_000;

interface Line {
  readonly msg: string;
  readonly [field: string]: unknown;
}

/** A started fixture, with every line of its log so far. */
class Fixture {
  readonly lines: Line[] = [];
  readonly child: ChildProcess;
  readonly #exit: Promise<number | NodeJS.Signals>;
  readonly #awaited = new Map<string, () => void>();

  constructor(child: ChildProcess) {
    this.child = child;
    const log = createInterface(child.stderr!).on('line', (text) => {
      const line = JSON.parse(text) as Line;
      this.lines.push(line);
      this.#awaited.get(line.msg)?.();
    });
    // Not `close`: Node never emits it once this side has closed the IPC channel.
    this.#exit = Promise.all([once(child, 'exit'), once(log, 'close')]).then(([[code, signal]]) => code ?? signal);
  }

  async logged(msg: string): Promise<void> {
    if (this.lines.some((line) => line.msg === msg)) return;
    await new Promise<void>((resolve) => this.#awaited.set(msg, resolve));
  }

  /** Exit code, or the signal that ended it. */
  exited(): Promise<number | NodeJS.Signals> {
    return this.#exit;
  }

  get messages(): string[] {
    return this.lines.map((line) => line.msg);
  }
}

let running: Fixture[] = [];

const kept = (child: ChildProcess) => {
  const fixture = new Fixture(child);
  running.push(fixture);
  return fixture;
};

/** As a person starts it from a shell. */
const start = (behaviour: string, drainTimeoutMs = NO_LIMIT) =>
  kept(spawn(process.execPath, [FIXTURE, behaviour, `${drainTimeoutMs}`], { stdio: ['ignore', 'ignore', 'pipe'] }));

/** As `llavacode up` starts it: with an IPC channel. */
const supervise = (behaviour: string) =>
  kept(fork(FIXTURE, [behaviour, `${NO_LIMIT}`], { stdio: ['ignore', 'ignore', 'pipe', 'ipc'], execArgv: [] }));

beforeAll(() => {
  if (!existsSync(FIXTURE)) throw new Error(`${FIXTURE} is missing: npm run build`);
});

afterEach(() => {
  for (const { child } of running) if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL');
  running = [];
});

const CLEAN = ['ready', 'draining', 'stopped second', 'stopped first', 'stopped'];

describe('a service process', () => {
  it('a process whose parent died while it loaded its code stops when it has loaded', async () => {
    const fixture = supervise('orphaned-at-start');
    fixture.child.disconnect();
    expect(await fixture.exited()).toBe(0);
    expect(fixture.messages).toContain('stopped');
  });

  it.each(['SIGTERM', 'SIGINT'] as const)(
    'a service process drains on %s, stops last-first and exits 0',
    async (signal) => {
      const service = start('well');
      await service.logged('ready');
      service.child.kill(signal);
      expect(await service.exited()).toBe(0);
      expect(service.messages).toEqual(CLEAN);
      const find = (msg: string) => service.lines.find((line) => line.msg === msg);
      expect(find('draining')).toMatchObject({ reason: signal });
      expect(find('stopped second')).toMatchObject({ code: 'draining' });
      expect(find('stopped first')).toMatchObject({ phase: 'draining' });
    },
  );

  it('a service process without a terminal reads its files again on SIGHUP, and goes on', async () => {
    const service = start('well');
    await service.logged('ready');
    service.child.kill('SIGHUP');
    await service.logged('read again');
    service.child.kill('SIGTERM');
    expect(await service.exited()).toBe(0);
    expect(service.messages.filter((msg) => !msg.startsWith('SIGHUP'))).toEqual(CLEAN.toSpliced(1, 0, 'read again'));
  });

  it('a service process finishes its drain although the signals come again, as Ctrl+C under npm sends them', async () => {
    const service = start('busy');
    await service.logged('ready');
    service.child.kill('SIGINT');
    await service.logged('draining');
    service.child.kill('SIGINT');
    service.child.kill('SIGTERM');
    service.child.kill('SIGUSR2');
    expect(await service.exited()).toBe(0);
    expect(service.messages).toEqual(CLEAN);
  });

  it('a service process ends at once when a person goes on pressing Ctrl+C', async () => {
    const service = start('hang');
    await service.logged('ready');
    const pressing = setInterval(() => service.child.kill('SIGINT'), 50);
    const exit = await service.exited();
    clearInterval(pressing);
    expect(exit).toBe(130);
    expect(service.messages).toEqual(['ready', 'draining', 'interrupted again: exiting at once']);
  });

  it('a drain that outlasts its timeout is cut, and the log names the step that hangs', async () => {
    const service = start('hang', 50);
    await service.logged('ready');
    service.child.kill('SIGTERM');
    expect(await service.exited()).toBe(1);
    expect(service.messages).toEqual(['ready', 'draining', 'drain timed out: exiting at once']);
    expect(service.lines.at(-1)).toMatchObject({ step: 'hanging', drainTimeoutMs: 50 });
  });

  it('a service process runs the other steps when one throws, and exits 1', async () => {
    const service = start('stop-throws');
    await service.logged('ready');
    service.child.kill('SIGTERM');
    expect(await service.exited()).toBe(1);
    expect(service.messages).toEqual(CLEAN.toSpliced(2, 0, 'stop step failed'));
  });

  it('a service process that is stopped while it starts never becomes ready, and runs the steps registered meanwhile', async () => {
    const service = start('stop-in-start');
    expect(await service.exited()).toBe(0);
    expect(service.messages).toEqual(['draining', 'stopped late', 'stopped second', 'stopped first', 'stopped']);
  });

  it.each([
    { behaviour: 'throw', message: 'a bug' },
    { behaviour: 'reject', message: 'no reason' },
  ])('a service process drains and exits 1 on an unexpected error ($behaviour)', async ({ behaviour, message }) => {
    const service = start(behaviour);
    expect(await service.exited()).toBe(1);
    expect(service.messages).toEqual(CLEAN.toSpliced(1, 0, 'this process cannot go on: stopping'));
    expect(service.lines[1]).toMatchObject({ err: { code: 'internal', message: expect.stringContaining(message) } });
  });
});

describe('a supervised service process', () => {
  it('a supervised service process tells its parent the addresses and drains when the parent dies', async () => {
    const service = supervise('well');
    const [message] = await once(service.child, 'message');
    expect(message).toEqual({ ready: true, address: '127.0.0.1:1', metricsAddress: '127.0.0.1:2' });
    service.child.disconnect();
    expect(await service.exited()).toBe(0);
    expect(service.messages).toEqual(CLEAN);
    expect(service.lines[1]).toMatchObject({ reason: 'parent gone' });
  });

  it('a supervised service process leaves SIGINT to its parent, which sends SIGTERM', async () => {
    const service = supervise('well');
    await service.logged('ready');
    service.child.kill('SIGINT');
    service.child.kill('SIGTERM');
    expect(await service.exited()).toBe(0);
    expect(service.lines[1]).toMatchObject({ msg: 'draining', reason: 'SIGTERM' });
  });

  it('a supervised service process stops once when its parent dies during the drain', async () => {
    const service = supervise('busy');
    await service.logged('ready');
    service.child.kill('SIGTERM');
    await service.logged('draining');
    service.child.disconnect();
    service.child.kill('SIGUSR2');
    expect(await service.exited()).toBe(0);
    expect(service.messages).toEqual(CLEAN);
  });
});
