import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import { setImmediate } from 'node:timers/promises';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { judge, notRun } from '../../../bench/drills/judge.ts';
import { Link } from '../../../bench/drills/link.ts';
import { reportDrills } from '../../../bench/drills/report.ts';
import { fitFloor } from '../../../bench/drills/slope.ts';
import { stagesOf } from '../../../bench/drills/stages.ts';
import type { StreamRecord } from '../../../bench/drills/streams.ts';
import { findRedis } from '../../../bench/system/redis.ts';

vi.mock(import('../../../bench/system/redis.ts'), async (original) => ({ ...(await original()), findRedis: vi.fn() }));

const record = (change: Partial<StreamRecord>): StreamRecord => ({
  sentMs: 0,
  firstMs: 10,
  endedMs: 20,
  outcome: 'ok',
  lost: 0,
  doubled: 0,
  longestGapMs: 5,
  ...change,
});
const DRILL = { name: 'a drill' };

describe('a drill', () => {
  test('that nobody noticed is as promised', () => {
    const records = [record({}), record({ outcome: 'left', firstMs: undefined })];
    expect(judge(DRILL, records, [], '')).toMatchObject({ sent: 2, ok: 1, left: 1, failed: {}, broken: '' });
  });

  test.each([
    [{ outcome: 'failed', code: 'worker_lost' }, '1 requests failed'],
    [{ lost: 3 }, '3 tokens lost'],
    [{ doubled: 2 }, '2 tokens doubled'],
    [{ outcome: 'failed', code: 'x', doubled: 1 }, '1 tokens doubled; 1 requests failed'],
  ] as const)('with %j is not', (change, broken) => {
    expect(judge(DRILL, [record(change)], [], '').broken).toBe(broken);
  });

  describe('of a gateway that is killed at 100 and back at 200', () => {
    const GATEWAY = { ...DRILL, mayFail: true };
    const failed = { outcome: 'failed', code: 'connection' } as const;
    const after = record({ sentMs: 210, firstMs: 220, endedMs: 230 });
    const verdict = (records: StreamRecord[], mendedMs: number | undefined = 200) =>
      judge(GATEWAY, records, [{ atMs: 100, mendedMs }], '');

    test('may lose the connections that it had, and those that came before it was back', () => {
      const struck = [record({ ...failed, endedMs: 101 }), record({ ...failed, sentMs: 199, endedMs: 205 })];
      const early = record({ ...failed, code: 'no_worker', sentMs: 180, endedMs: 181 });
      const { failed: counts, broken } = verdict([...struck, early, after]);
      expect({ counts, broken }).toEqual({ counts: { connection: 2, no_worker: 1 }, broken: '' });
    });

    test.each<[string, Partial<StreamRecord>]>([
      ['one before', { ...failed, endedMs: 99 }],
      ['one afterwards', { ...failed, sentMs: 201, endedMs: 202 }],
      ['one for want of workers that it had', { ...failed, code: 'no_worker', endedMs: 150 }],
      ['one by another error', { ...failed, code: 'internal', sentMs: 150, endedMs: 160 }],
    ])('may not fail %s', (_, change) => {
      expect(verdict([record(change), after]).broken).toBe('1 requests failed');
    });

    test('may double no token', () => {
      expect(verdict([record({ doubled: 1 }), after]).broken).toBe('1 tokens doubled');
    });

    test.each([200, undefined])('must answer afterwards (back at %s)', (mendedMs) => {
      const records = [record({}), record({ ...failed, sentMs: 150, endedMs: 160 })];
      expect(verdict(records, mendedMs).broken).toBe('no request was answered after the last disturbance');
    });
  });

  test('whose clients are to leave needs some who do', () => {
    const left = record({ outcome: 'left' });
    const verdict = (...records: StreamRecord[]) => judge({ ...DRILL, leaving: 0.6 }, records, [], '').broken;
    expect(verdict(left, record({}), record({}))).toBe('');
    expect(verdict(left, record({}), record({}), record({}))).toBe('only 1 of 4 clients left');
  });

  test('has recovered when a request that was sent afterwards has its first token', () => {
    const records = [
      record({ sentMs: 90, firstMs: 101 }), // sent before
      record({ sentMs: 110, outcome: 'failed', code: 'x', firstMs: 111 }),
      record({ sentMs: 120, firstMs: 400 }),
      record({ sentMs: 150, firstMs: 250 }),
      record({ sentMs: 600, firstMs: 610 }),
    ];
    const marks = [{ atMs: 100 }, { atMs: 590 }];
    expect(judge(DRILL, records, marks, '')).toMatchObject({ recoveryMs: 150, worstTtftMs: 280 });
  });
});

test('a drill that wants a redis-server says so where there is none', async () => {
  const folders = { data: 'unused', path: 'unused', repo: 'unused' };
  const stage = stagesOf({ bundle: 'unused' }, folders).find(({ drills }) => drills[0]?.name === 'kill -9 redis')!;
  const why = await stage.open();
  expect(findRedis).toHaveBeenCalledOnce();
  expect(why).toBe('no redis-server on PATH');
  const result = { drills: stage.drills.map((drill) => notRun(drill, String(why))) };
  const { markdown } = reportDrills({ result });
  expect(markdown).toMatch(/^\| kill -9 redis \| 0 \| 0 .* \| not run: no redis-server on PATH \|$/m);
});

describe('a slope', () => {
  test('of a line is that of the line, without error', () => {
    const real = fc.double({ min: -1e6, max: 1e6, noNaN: true });
    fc.assert(
      fc.property(real, real, fc.integer({ min: 12, max: 100 }), (perUnit, offset, count) => {
        const fit = fitFloor(Array.from({ length: count }, (_, x) => [x, offset + perUnit * x]));
        expect(fit.perUnit).toBeCloseTo(perUnit, 3);
        expect(fit.error).toBeLessThan(1e-3);
      }),
    );
  });

  test('of a saw tooth is that of its floor', () => {
    const saw = (grows: number) => Array.from({ length: 120 }, (_, x) => [x, (x % 7) * 10 + grows * x] as const);
    expect(fitFloor(saw(0))).toMatchObject({ perUnit: 0, error: 0 });
    const growing = fitFloor(saw(5));
    expect(growing.perUnit - 2 * growing.error).toBeGreaterThan(4);
  });

  test('of too few points is not known', () => {
    expect(fitFloor([]).error).toBe(Infinity);
    expect(fitFloor([[1, 2]])).toEqual({ mean: 2, perUnit: 0, error: Infinity });
  });
});

describe('a link', () => {
  async function echo(): Promise<Link> {
    const server = createServer((socket) => socket.pipe(socket)).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const link = await Link.open();
    link.target = `127.0.0.1:${(server.address() as AddressInfo).port}`;
    onTestFinished(() => {
      link.close();
      server.close();
    });
    return link;
  }
  async function dial(link: Link): Promise<Socket> {
    const socket = connect(Number(link.address.split(':')[1]), '127.0.0.1');
    onTestFinished(() => void socket.destroy());
    await once(socket, 'connect');
    return socket;
  }
  const say = async (socket: Socket, text: string) => {
    socket.write(text);
    return String((await once(socket, 'data'))[0]);
  };

  test('carries what is said, in order, also when it is slow', async () => {
    const link = await echo();
    link.delayMs = 5;
    const socket = await dial(link);
    for (const text of ['one', 'two']) expect(await say(socket, text)).toBe(text);
  });

  test('keeps the order when it is slow and fast by turns', async () => {
    const link = await echo();
    const socket = await dial(link);
    let heard = '';
    socket.on('data', (part) => {
      heard += part;
    });
    const words = Array.from({ length: 100 }, (_, i) => `${i} `);
    for (const [i, word] of words.entries()) {
      link.delayMs = i % 2 === 0 ? 5 : 0;
      socket.write(word);
      for (let turn = 0; turn < 5; turn++) await setImmediate(); // else several go as one part
    }
    while (heard.length < words.join('').length) await once(socket, 'data');
    expect(heard).toBe(words.join(''));
  });

  test('brings what was said before the end, however late', async () => {
    const link = await Link.open();
    link.delayMs = 50;
    const server = createServer((socket) => socket.end('the last word')).listen(0, '127.0.0.1');
    await once(server, 'listening');
    link.target = `127.0.0.1:${(server.address() as AddressInfo).port}`;
    onTestFinished(() => {
      link.close();
      server.close();
    });
    expect(await text(await dial(link))).toBe('the last word');
  });

  test('that is down hangs up on everybody, and is there again when it is up', async () => {
    const link = await echo();
    const before = await dial(link);
    expect(await say(before, 'x')).toBe('x');
    link.state = 'down';
    await once(before, 'close');
    await once(await dial(link), 'close');
    link.state = 'up';
    expect(await say(await dial(link), 'y')).toBe('y');
  });

  test('that is dead carries nothing and hangs up on nobody; what it swallowed never comes', async () => {
    const link = await echo();
    const socket = await dial(link);
    expect(await say(socket, 'x')).toBe('x');
    const heard: string[] = [];
    socket.on('data', (part) => heard.push(String(part)));
    link.state = 'dead';
    socket.write('lost');
    await expect.poll(() => link.broken).toBe(1);
    link.state = 'up';
    await once(socket, 'close');
    expect(heard).toEqual([]);
    expect(await say(await dial(link), 'y')).toBe('y');
  });
});
