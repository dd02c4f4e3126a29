import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { type Loading, LoadQueue } from '../../../services/lib/rag/search/load-queue.ts';

/** Loads that end when they are told to, and the memory that they share. */
class Scene {
  readonly kept: { key: string; bytes: number }[] = [];
  /** Keys of loads in the order in which they began. */
  readonly begun: string[] = [];
  readonly underWay = new Map<string, { loading: Loading; end: (error?: Error) => void }>();
  readonly queue: LoadQueue<string>;

  constructor(limitBytes = 1_000) {
    const { kept } = this;
    this.queue = new LoadQueue({
      limitBytes,
      get keptBytes() {
        return kept.reduce((sum, { bytes }) => sum + bytes, 0);
      },
      evictFor: () => kept.shift() !== undefined,
    });
  }

  join(repo: string, signal?: AbortSignal, evicts = true): Promise<string> {
    const run = (loading: Loading) => {
      this.begun.push(repo);
      return new Promise<string>((resolve, reject) => {
        const leave = () => this.underWay.delete(repo);
        loading.signal.addEventListener('abort', () => leave() && reject(loading.signal.reason), { once: true });
        const end = (error?: Error) => leave() && (error ? reject(error) : resolve(`index of ${repo}`));
        this.underWay.set(repo, { loading, end });
      });
    };
    return this.queue.join(repo, { repo, evicts, run }, signal);
  }

  reserve(repo: string, bytes: number): Promise<void> {
    return this.underWay.get(repo)!.loading.reserve(bytes);
  }

  async end(repo: string, error?: Error): Promise<void> {
    this.underWay.get(repo)!.end(error);
    await turns();
  }
}

const turns = async () => {
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
};
const outcome = (load: Promise<string>) => load.catch((error: Error) => error.message);

let scene: Scene;
beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  scene = new Scene();
});
afterEach(() => {
  vi.useRealTimers();
});

test('two loads are under way at a time, and one load serves all who ask for it', async () => {
  const asked = ['a', 'b', 'c', 'a', 'c'].map((repo) => scene.join(repo, new AbortController().signal));
  expect(scene.begun).toEqual(['a', 'b']);
  await scene.end('a');
  expect(scene.begun).toEqual(['a', 'b', 'c']);
  await scene.end('b');
  await scene.end('c');
  expect(await Promise.all(asked)).toEqual(['a', 'b', 'c', 'a', 'c'].map((repo) => `index of ${repo}`));
});

test('a failure reaches all who wait, and the next call loads again', async () => {
  const asked = [scene.join('a'), scene.join('a')].map(outcome);
  await scene.end('a', new Error('damaged'));
  expect(await Promise.all(asked)).toEqual(['damaged', 'damaged']);
  const again = scene.join('a');
  await scene.end('a');
  expect(await again).toBe('index of a');
});

test('tenants take turns: a tenant with a hundred loads keeps another one waiting for one of them at most', async () => {
  const many = Array.from({ length: 100 }, (_, i) => outcome(scene.join(`many:${i}`)));
  const one = scene.join('one:repo');
  await scene.end('many:0');
  expect(scene.begun.at(-1)).toBe('one:repo');
  await scene.end('one:repo');
  expect(await one).toBe('index of one:repo');
  for (let i = 1; i < 100; i++) {
    await vi.waitUntil(() => scene.underWay.has(`many:${i}`));
    await scene.end(`many:${i}`);
  }
  expect(new Set(await Promise.all(many)).size).toBe(100);
});

describe('a load for which nobody waits', () => {
  test('a load goes on for a while when its caller gives up, and serves the caller who asks again', async () => {
    const abort = new AbortController();
    const given = outcome(scene.join('a', abort.signal));
    abort.abort(new Error('too late'));
    expect(await given).toBe('too late');
    await vi.advanceTimersByTimeAsync(9_000);
    const again = scene.join('a', new AbortController().signal);
    await vi.advanceTimersByTimeAsync(60_000); // somebody waits: it is not given up
    await scene.end('a');
    expect(await again).toBe('index of a');
    expect(scene.begun).toEqual(['a']);
  });

  test('a load is given up, under way or not, when nobody has waited for it for a while', async () => {
    const [abort, abortWaiting] = [new AbortController(), new AbortController()];
    const asked = ['a', 'b'].map((repo) => outcome(scene.join(repo, abort.signal)));
    const waiting = outcome(scene.join('c', abortWaiting.signal));
    const { signal } = scene.underWay.get('a')!.loading;
    abortWaiting.abort(new Error('too late'));
    await vi.advanceTimersByTimeAsync(5_000);
    abort.abort(new Error('too late'));
    await Promise.all([...asked, waiting]);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(signal.aborted).toBe(false);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(signal.aborted).toBe(true);
    await turns();
    expect(scene.underWay.size).toBe(0);
    expect(scene.begun).not.toContain('c');
    const d = scene.join('d');
    await scene.end('d');
    expect(await d).toBe('index of d');
  });

  test('of thousands of loads that are asked for only some hundreds wait, and those for which nobody waits go first', async () => {
    const abort = new AbortController();
    const asked = Array.from({ length: 258 }, (_, i) => outcome(scene.join(`r${i}`, abort.signal)));
    expect(await outcome(scene.join('refused', new AbortController().signal))).toMatch(/256 indexes wait/);
    abort.abort(new Error('too late'));
    await Promise.all(asked);
    for (let i = 0; i < 2_560; i++) void outcome(scene.join(`s${i}`, new AbortController().signal));
    expect(await outcome(scene.join('refused', new AbortController().signal))).toMatch(/256 indexes wait/);
  });
});

describe('the memory of loads', () => {
  test('a load that needs room drops the indexes that were not used for the longest time', async () => {
    scene.kept.push({ key: 'old', bytes: 400 }, { key: 'new', bytes: 400 });
    const a = scene.join('a');
    await scene.reserve('a', 500);
    expect(scene.kept.map(({ key }) => key)).toEqual(['new']);
    await scene.end('a');
    await a;
  });

  test('a load that may not drop others is refused instead', async () => {
    scene.kept.push({ key: 'used', bytes: 600 });
    const a = outcome(scene.join('a', undefined, false));
    await expect(scene.reserve('a', 500)).rejects.toMatchObject({ code: 'saturated' });
    expect(scene.kept).toHaveLength(1);
    await scene.end('a');
    await a;
  });

  test('if two loads do not fit beside each other, the younger one begins again when the older one has ended', async () => {
    const [older, younger] = [scene.join('older'), scene.join('younger')];
    await scene.reserve('older', 400);
    await scene.reserve('younger', 500);
    await scene.reserve('older', 600);
    await turns();
    expect([...scene.underWay.keys()]).toEqual(['older']);
    expect(scene.begun).toEqual(['older', 'younger']);
    const next = scene.join('next'); // it does not come between
    await turns();
    expect(scene.begun).toHaveLength(2);
    await scene.end('older');
    expect(scene.begun).toEqual(['older', 'younger', 'younger']);
    await scene.reserve('younger', 1_000);
    await scene.end('younger');
    await scene.end('next');
    expect(await Promise.all([older, younger, next])).toEqual(['index of older', 'index of younger', 'index of next']);
  });

  test('a load that needs room for itself gives way to an older one', async () => {
    const [older, younger] = [scene.join('older'), scene.join('younger')];
    await scene.reserve('older', 600);
    await expect(scene.reserve('younger', 500)).rejects.toThrow('gives way');
    await scene.end('older');
    await scene.reserve('younger', 900);
    await scene.end('younger');
    await Promise.all([older, younger]);
  });

  test('what a load has reserved is free again when it ends', async () => {
    for (let i = 0; i < 20; i++) {
      const load = outcome(scene.join(`r${i}`));
      await scene.reserve(`r${i}`, 900);
      await scene.end(`r${i}`, i % 2 ? new Error('damaged') : undefined);
      await load;
    }
  });
});
