import { expect, test, vi } from 'vitest';
import { SamePrompts } from '../../../services/gateway/completion/same-prompts.ts';
import { NO_SOFT_TOKENS, type TokenPrompt } from '../../../services/lib/request/token-prompt.ts';
import { settle } from '../../support/fake-engine.ts';
import { fakeGateway, spelling, tokenizer } from '../../support/fake-gateway.ts';
import { post } from '../../support/post.ts';

const { signal } = new AbortController();
const prompt = (fill: number, length = 64, soft?: number): TokenPrompt => ({
  ids: new Int32Array(length).fill(fill),
  soft: soft === undefined ? NO_SOFT_TOKENS : { positions: Int32Array.of(0), vectors: Float32Array.of(soft) },
});

/** Enters, and says whether it has been let in. */
function entering(same: SamePrompts, of: TokenPrompt, salt = 'a', until = signal) {
  const state = { isIn: false };
  const place = same.enter(of, salt, until).finally(() => {
    state.isIn = true;
  });
  place.catch(() => {});
  return { state, place };
}

test('a prompt waits for the same one in flight until that is computed, and is told where', async () => {
  const same = new SamePrompts();
  const first = await same.enter(prompt(1), 'a', signal);
  const [second, third] = [entering(same, prompt(1)), entering(same, prompt(1))];
  await settle();
  expect([second.state.isIn, third.state.isIn]).toEqual([false, false]);
  first.computed('w:1');
  expect([(await second.place).worker, (await third.place).worker]).toEqual(['w:1', 'w:1']);
  expect((await same.enter(prompt(1), 'a', signal)).worker).toBeUndefined(); // no longer in flight
});

test('a prompt that differs, has another salt or other soft tokens, or is short, waits for none', async () => {
  const same = new SamePrompts();
  for (const of of [prompt(1), prompt(2), prompt(1, 65), prompt(1, 64, 1), prompt(1, 64, 2)])
    await same.enter(of, 'a', signal);
  await same.enter(prompt(1), 'b', signal);
  for (let i = 0; i < 2; i++) await same.enter(prompt(1, 63), 'a', signal);
});

test('when the first of equal prompts ends before it is computed, the next one takes its place', async () => {
  const same = new SamePrompts();
  const first = await same.enter(prompt(1), 'a', signal);
  const [second, third] = [entering(same, prompt(1)), entering(same, prompt(1))];
  first.end();
  const next = await second.place;
  expect(next.worker).toBeUndefined();
  await settle();
  expect(third.state.isIn).toBe(false);
  first.computed('w:late'); // harmless: it is over
  next.computed('w:2');
  expect((await third.place).worker).toBe('w:2');
});

test('a request that is given up does not wait for the same prompt', async () => {
  const same = new SamePrompts();
  await same.enter(prompt(1), 'a', signal);
  const gone = new AbortController();
  const { place } = entering(same, prompt(1), 'a', gone.signal);
  gone.abort(new Error('gone'));
  await expect(place).rejects.toThrow('gone');
});

test('a request waits for the same prompt in flight, and is computed if that one is given up', async () => {
  const gateway = await fakeGateway({ token: spelling('ab'), holdAt: 'before first', capacity: 4096 });
  const { workers } = gateway;
  const body = { prompt: Array(200).fill(65), max_tokens: 2 };
  const first = await post(gateway, body);
  await workers.held();
  const second = gateway.complete(body);
  const other = gateway.complete({ prompt: 'other', timeout_ms: 5_000 });
  await vi.waitUntil(() => workers.prefills.length === 2, { timeout: 60_000 });
  expect(workers.prefills[1]!.tokenIds).toEqual(tokenizer.encode('other'));
  delete workers.model.holdAt;
  first.destroy();
  expect(await second).toMatchObject({ status: 200 });
  expect(workers.prefills.map(({ tokenIds }) => tokenIds!.length)).toEqual([
    200,
    tokenizer.encode('other').length,
    200,
  ]);
  await other;
  await gateway.app.close();
});

test('requests for one prompt, at once or one after the other, go to one of several workers', async () => {
  const used = new Set<string>();
  const gateway = await fakeGateway(
    {
      token: spelling('ab'),
      capacity: 4096,
      trouble: ({ stage, worker }) => {
        if (stage === 'before accepted') used.add(worker);
        return undefined;
      },
    },
    { morePrefill: ['127.0.0.1:11', '127.0.0.1:12', '127.0.0.1:13'] },
  );
  const ask = () => gateway.complete({ prompt: Array(200).fill(65), max_tokens: 2 });
  const answers = await Promise.all([ask(), ask(), ask()]);
  expect([...answers, await ask()].map(({ status }) => status)).toEqual([200, 200, 200, 200]);
  expect(used).toHaveProperty('size', 1);
});
