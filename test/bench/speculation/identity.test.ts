/** How `bench speculation --identity` compares the answers of two systems, with fake ones. */
import { expect, it } from 'vitest';
import { identicalOf, measureIdentity, turnOf } from '../../../bench/speculation/identity.ts';
import { SPECULATION } from '../../../bench/speculation/report.ts';
import { gateway, json, refuse } from '../../support/fake-http.ts';

const TEMPERATURES = [0, 0.8];
/** Ten kinds, two temperatures, four predictions. */
const ALL = 80;
const SETTINGS = {
  identity: ALL,
  streams: 3,
  temperatures: TEMPERATURES,
  promptTokens: 8,
  outputTokens: 16,
  context: 'off',
  seed: 100,
  timeoutMs: 60_000,
} as const;

interface Body {
  readonly seed: number;
  readonly n?: number;
  readonly prediction?: { readonly content: string };
}

const prompts = {
  make: (i: number) => ({ prompt: [i] }),
  blocks: ([block = 0]: readonly number[], tokens: number) => Array.from({ length: tokens }, () => 1000 + block),
};
const tokenizer = { decode: (ids: Iterable<number>) => Array.from(ids).join(' ') };

/** Choices that are of the seed alone, and the bodies that were asked for. */
async function system(finishReason: (seed: number) => string = () => 'stop') {
  const bodies: Body[] = [];
  const url = await gateway((body, _, response) => {
    const { seed, n = 1 } = body as Body;
    bodies.push(body as Body);
    const choice = { text: `${seed} ${seed}`, token_ids: [seed, seed], finish_reason: finishReason(seed) };
    json(response, { choices: Array.from({ length: n }, (_, index) => ({ index, ...choice })) });
  });
  return { system: { url, processes: [] }, bodies };
}

const bySeed = (bodies: readonly Body[]) => bodies.toSorted((a, b) => a.seed - b.seed);

it('requests have every kind at every temperature with every prediction in turns', () => {
  const turns = Array.from({ length: ALL }, (_, i) => turnOf(i, TEMPERATURES));
  expect(new Set(turns.map((turn) => JSON.stringify(turn))).size).toBe(ALL);
  expect(turnOf(ALL, TEMPERATURES)).toEqual(turns[0]);
});

it('both systems get the same requests, and the one that speculates gets predictions of what the other one gave', async () => {
  const [plain, speculative] = [await system(), await system()];
  const systems = { plain: plain.system, speculative: speculative.system };
  const result = await measureIdentity(
    systems,
    prompts,
    tokenizer,
    SETTINGS,
    () => {},
    async () => {},
  );
  const [asked, predicted] = [bySeed(plain.bodies), bySeed(speculative.bodies)];
  expect(asked.map(({ seed }) => seed)).toEqual(Array.from({ length: ALL }, (_, i) => SETTINGS.seed + i));
  expect(predicted.map(({ prediction: _, ...body }) => body)).toEqual(asked);
  const contents = predicted.map(({ prediction }, i) => [turnOf(i, TEMPERATURES).trace, prediction?.content] as const);
  for (const [i, [trace, content]] of contents.entries()) {
    const seed = SETTINGS.seed + i;
    if (trace === 'completion') expect(content).toBeUndefined();
    if (trace === 'exact') expect(content).toBe(`${seed} ${seed}`);
    if (trace === 'wrong') expect(content).toBe(`${1001 + i} ${1001 + i}`);
  }
  expect(identicalOf(result)).toEqual({ requests: ALL, same: ALL });
  const four = result.kinds.filter(({ kind }) => kind === 'four choices');
  expect(four).toEqual(
    TEMPERATURES.map((temperature) => ({
      kind: 'four choices',
      temperature,
      requests: 4,
      choices: 16,
      tokens: 32,
      same: 4,
    })),
  );
  expect(SPECULATION.headline({ model: 'm', traces: [], identity: result })).toBe('80 of 80 answers the same');
});

it('an answer that differs in its finish reason alone is counted, and shown whole', async () => {
  const other = SETTINGS.seed + 13;
  const [plain, speculative] = [await system(), await system((seed) => (seed === other ? 'length' : 'stop'))];
  const told: number[] = [];
  const systems = { plain: plain.system, speculative: speculative.system };
  const identity = await measureIdentity(
    systems,
    prompts,
    tokenizer,
    SETTINGS,
    (_, different) => told.push(different),
    async () => {},
  );
  expect(identicalOf(identity)).toEqual({ requests: ALL, same: ALL - 1 });
  expect(told.at(-1)).toBe(1);
  const [difference] = identity.differences;
  expect(difference).toMatchObject({ request: 13, ...turnOf(13, TEMPERATURES) });
  expect(JSON.parse(difference!.speculative)).toEqual(
    (JSON.parse(difference!.plain) as object[]).map((choice) => ({ ...choice, finish_reason: 'length' })),
  );
  const result = { model: 'm', traces: [], identity };
  const { markdown } = SPECULATION.report({ result } as Parameters<typeof SPECULATION.report>[0]);
  expect(markdown).toContain('| penalties | 0.8 | 4 | 4 | 8 | 3 of 4 |');
  expect(markdown).toContain('The first requests whose answers differ: 13 (penalties, 0.8).');
});

it('a request that fails ends the comparison with its code', async () => {
  const plain = await system();
  const url = await gateway((_body, _request, response) => refuse(response, 'no_worker'));
  const systems = { plain: plain.system, speculative: { url, processes: [] } };
  const failed = measureIdentity(
    systems,
    prompts,
    tokenizer,
    SETTINGS,
    () => {},
    async () => {},
  );
  await expect(failed).rejects.toMatchObject({ code: 'no_worker' });
});
