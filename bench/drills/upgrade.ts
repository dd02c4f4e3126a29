/**
 * The exchange of a bundle under load: the candidate's indexes are made beside the others, it gets a share of the
 * requests, then all of them, and none again, as `llavacode rollout` has it. Both bundles compute in 32-bit floats and
 * have other weights in the language model, which is also the encoder: an answer in which anything of one bundle meets
 * anything of the other one has other tokens than it must have.
 */
import { join } from 'node:path';
import { json as jsonOf } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { type CompletionBody, streamCompletion } from '../../services/client.ts';
import { bearer, sendRequest } from '../../services/http-call.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { openSourceNetwork } from '../../services/lib/model/checkpoint/source-network.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { RolloutAnswer } from '../../services/rollout-command.ts';
import type { Door } from '../system/tenants.ts';
import type { Fleet } from './fleet.ts';
import type { Drill, Scene } from './scene.ts';
import { type Reference, TIMEOUT_MS } from './streams.ts';

/** By how much some weights of the candidate are larger: enough for other tokens, and for sound ones. */
const LARGER = 1.5;
/** Share of the requests that the candidate gets at first, in percent. */
const CANARY = 50;
/** Longest time until the candidate's indexes are made, or it has completed its trial, in ms. */
const PATIENCE_MS = 120_000;
/** Within this time after the word, no gateway serves the candidate any more, in ms. */
const ROLLBACK_MS = 1_000;

/** Settings of a fleet whose gateways take part in rollouts. */
export const UPGRADE_FLAGS = { gateways: 2, gateway: { rollouts: true } } as const;

/**
 * Makes a bundle of the checkpoint with some weights changed: as if it had been trained for longer.
 * @returns its folder.
 */
export async function otherBundle(checkpoint: string, dir: string): Promise<string> {
  const to = join(dir, 'drill-candidate');
  await using network = await openSourceNetwork(checkpoint);
  const weights = {
    origin: network.weights.origin,
    shapeOf: (name: string) => network.weights.shapeOf(name),
    read: async (name: string) => {
      const values = await network.weights.read(name);
      return name.endsWith('mlp.down_proj.weight') ? values.map((value) => value * LARGER) : values;
    },
  };
  const { spec, tokenizerDir, name } = network;
  const changed = { name, spec, weights, tokenizerDir, [Symbol.asyncDispose]: async () => {} };
  await exportBundle({ llm: changed, to, name, precision: 'fp32' });
  return to;
}

/** What a system answers to one request, with the version of its index, and without context. */
interface BundleAnswer {
  readonly version: string;
  readonly tokenIds: readonly number[];
  readonly withoutContext: readonly number[];
}

/** The answers of a system that nothing disturbs. */
export async function answersOf(fleet: Door, references: readonly Reference[]): Promise<BundleAnswer[]> {
  const answers: BundleAnswer[] = [];
  const answer = (body: CompletionBody) =>
    streamCompletion(fleet.url, body, AbortSignal.timeout(TIMEOUT_MS), { apiKey: fleet.apiKey });
  for (const { body } of references) {
    const { tokenIds, rag } = await answer(body);
    if (rag?.degraded || !rag?.index_version)
      throw new ServingError('internal', 'an undisturbed answer had no context');
    const { rag: _, ...plain } = body;
    const { tokenIds: withoutContext } = await answer(plain);
    answers.push({ version: rag.index_version, tokenIds, withoutContext });
  }
  return answers;
}

/**
 * References whose right answer depends on the index, and so on the bundle, that served them. Those to which all
 * bundles answer the same are left out: they would not show a mix.
 */
export function byBundle(
  references: readonly Reference[],
  ...systems: readonly (readonly BundleAnswer[])[]
): Reference[] {
  const differing = references.flatMap((reference, i) => {
    const byVersion = new Map(systems.map((answers) => [answers[i]!.version, answers[i]!.tokenIds]));
    const texts = new Set([...byVersion.values()].map((tokenIds) => tokenIds.join()));
    if (texts.size < systems.length) return [];
    return [{ ...reference, byVersion, othersWithoutContext: systems.map((answers) => answers[i]!.withoutContext) }];
  });
  if (differing.length > 0) return differing;
  throw new ServingError('internal', 'both bundles give the same answers, or have one version of the index');
}

/** Speaks to one gateway about its rollout. @throws ServingError internal unless it agrees. */
export async function askRollout(fleet: Fleet, address: string, action?: object): Promise<RolloutAnswer> {
  const answer = await sendRequest({
    method: action === undefined ? 'GET' : 'POST',
    url: `http://${address}/v1/rollout`,
    headers: { 'content-type': 'application/json', ...bearer(fleet.apiKey) },
    ...(action !== undefined && { body: JSON.stringify(action) }),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  const body = await jsonOf(answer);
  if (answer.statusCode === 200) return body as RolloutAnswer;
  throw new ServingError('internal', `/v1/rollout answered ${answer.statusCode}: ${JSON.stringify(body)}`);
}

/** Waits until every gateway is as wanted. @returns how long that took, in ms. */
export async function rolloutReached(
  fleet: Fleet,
  what: string,
  isSo: (status: RolloutAnswer) => boolean,
  { patienceMs = PATIENCE_MS, everyMs = 20 } = {},
): Promise<number> {
  const startMs = performance.now();
  for (;;) {
    const gateways = fleet.of('gateway').map(({ process }) => askRollout(fleet, process.address));
    const statuses = await Promise.all(gateways);
    const tookMs = performance.now() - startMs;
    if (statuses.every(isSo)) return tookMs;
    if (tookMs > patienceMs) {
      throw new ServingError('internal', `after ${patienceMs} ms not ${what}: ${JSON.stringify(statuses)}`);
    }
    await sleep(everyMs);
  }
}

async function upgrade({ fleet, candidate, seconds, mark, burst }: Scene, rollbackMs: number): Promise<string> {
  const [gateway] = fleet.of('gateway');
  const address = gateway!.process.address;
  const indexer = fleet.of('indexer').at(-1)!.link!.address;
  const start = (asked: object) => askRollout(fleet, address, { action: 'start', bundle: candidate, ...asked });
  mark();
  await start({ indexer, share: 0 });
  const embeddedMs = await rolloutReached(fleet, 'indexed for the candidate', ({ phase, index }) => {
    return phase === 'canary' && index !== null && index.repositories > 0 && index.current === index.repositories;
  });
  await start({ share: CANARY });
  await sleep(1000 * seconds);
  mark();
  await askRollout(fleet, address, { action: 'promote' });
  await rolloutReached(fleet, 'promoted', ({ phase, index }) => phase === 'promoted' && index !== null);
  await burst();
  await sleep(1000 * seconds);
  mark();
  const startMs = performance.now();
  await askRollout(fleet, address, { action: 'rollback' });
  await rolloutReached(fleet, 'rolled back', ({ phase }) => phase === 'none');
  const backMs = performance.now() - startMs;
  await burst();
  await sleep(1000 * seconds);
  if (backMs > rollbackMs) throw new ServingError('internal', `the rollback took ${backMs.toFixed(0)} ms`);
  const before = `indexes made beside the others in ${(embeddedMs / 1000).toFixed(1)} s`;
  return `${before}; rolled back at both gateways in ${backMs.toFixed(0)} ms`;
}

/** @param rollbackMs longest time until no gateway serves the candidate after a rollback, in ms. */
export const upgradeDrill = (rollbackMs: number): Drill => ({
  name: 'upgrade to another bundle, and back',
  keepsContext: true,
  disturb: (scene) => upgrade(scene, rollbackMs),
});

export const UPGRADE_DRILLS: readonly Drill[] = [upgradeDrill(ROLLBACK_MS)];
