/** Whose requests go to the candidate, and where the state of a rollout lies. */
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { isForCandidate, type RolloutState } from '../../../services/gateway/rollout/state.ts';
import { inFolder, inMemory, inRedis } from '../../../services/gateway/rollout/state-store.ts';
import { RedisConnection } from '../../../services/lib/redis/connection.ts';
import { startRedis } from '../../support/redis.ts';

const STATE: RolloutState = {
  bundle: '/bundles/next',
  fingerprint: 'a'.repeat(64),
  indexer: '',
  share: 20,
  by: 'session',
  promoted: false,
};

const asker = fc.record({
  tenant: fc.stringMatching(/^[a-z]{1,8}$/),
  session: fc.option(fc.string(), { nil: undefined }),
  requestId: fc.uuid(),
});
const share = fc.float({ min: 0, max: 100, noNaN: true });
const by = fc.constantFrom('session' as const, 'tenant' as const);

describe('the share of the candidate', () => {
  test('whoever has the candidate at a share has it at every larger one', () => {
    fc.assert(
      fc.property(asker, share, share, by, (who, one, other, what) => {
        const [less, more] = [Math.min(one, other), Math.max(one, other)];
        const at = (percent: number) => isForCandidate({ ...STATE, share: percent, by: what }, who);
        expect(at(less) && !at(more)).toBe(false);
      }),
    );
  });

  test('a session stays with one bundle, and by tenant a whole tenant does', () => {
    fc.assert(
      fc.property(asker, fc.uuid(), fc.string(), share, (who, otherRequest, otherSession, percent) => {
        const named = { ...who, session: who.session ?? 'x' };
        const bySession = { ...STATE, share: percent };
        expect(isForCandidate(bySession, { ...named, requestId: otherRequest })).toBe(isForCandidate(bySession, named));
        const byTenant = { ...bySession, by: 'tenant' as const };
        const elsewhere = { ...who, session: otherSession, requestId: otherRequest };
        expect(isForCandidate(byTenant, elsewhere)).toBe(isForCandidate(byTenant, who));
      }),
    );
  });

  test('nobody has it at 0, everybody at 100 or when it is promoted', () => {
    fc.assert(
      fc.property(asker, by, (who, what) => {
        expect(isForCandidate({ ...STATE, share: 0, by: what }, who)).toBe(false);
        expect(isForCandidate({ ...STATE, share: 100, by: what }, who)).toBe(true);
        expect(isForCandidate({ ...STATE, share: 0, by: what, promoted: true }, who)).toBe(true);
      }),
    );
  });

  test('of many sessions about the share has it, and another rollout takes other ones', () => {
    const sessions = Array.from({ length: 5_000 }, (_, i) => ({ tenant: 't', session: `s${i}`, requestId: 'r' }));
    const chosen = (state: RolloutState) => sessions.filter((who) => isForCandidate(state, who));
    const [first, second] = [chosen(STATE), chosen({ ...STATE, fingerprint: 'b'.repeat(64) })];
    for (const { length } of [first, second]) expect(length / 5_000).toBeCloseTo(0.2, 1);
    const both = first.filter((who) => second.includes(who)).length;
    expect(both / 5_000).toBeCloseTo(0.04, 1);
  });
});

async function folder(): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-rollout-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

describe('the state of a rollout', () => {
  test.each([
    ['a folder', async () => inFolder(await folder())],
    [
      'Redis',
      async () => {
        const server = await startRedis();
        const redis = new RedisConnection(server.url);
        onTestFinished(async () => {
          redis.close();
          await server.stop();
        });
        return inRedis(redis);
      },
    ],
    ['memory', async () => inMemory()],
  ])('what is written in %s is read, until it is removed', async (_, open) => {
    const store = await open();
    expect(await store.read()).toBeUndefined();
    await store.write(STATE);
    expect(await store.read()).toEqual(STATE);
    await store.write({ ...STATE, promoted: true });
    expect(await store.read()).toEqual({ ...STATE, promoted: true });
    await store.write(undefined);
    expect(await store.read()).toBeUndefined();
    await store.write(undefined);
  });

  test('a file is its user’s alone, and one that holds something else is named', async () => {
    const dir = await folder();
    const store = inFolder(dir);
    await store.write(STATE);
    const path = join(dir, 'rollout.json');
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    expect(JSON.parse(await readFile(path, 'utf8'))).toEqual(STATE);
    await writeFile(path, '{"share": 200}');
    await expect(store.read()).rejects.toMatchObject({
      code: 'store_invalid',
      message: expect.stringContaining(path),
    });
    await expect(inFolder(join(dir, 'none')).write(STATE)).rejects.toMatchObject({ code: 'store_unavailable' });
  });
});
