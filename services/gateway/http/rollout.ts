/**
 * `/v1/rollout`: another bundle beside the one that is served, for a share of the requests at first, and then in its
 * place. The command `llavacode rollout` speaks to it.
 */
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { z } from 'zod';
import { ServingError } from '../../lib/process/errors.ts';
import { addressOrNone } from '../../lib/process/setting-types.ts';
import type { Rollout, RolloutStatus } from '../rollout/rollout.ts';
import { SHARED_BY } from '../rollout/state.ts';
import type { BodySchema } from './editor-body.ts';
import type { HttpConfig } from './settings.ts';

export interface RolloutRouteParts extends Pick<HttpConfig, 'rollouts'> {
  readonly rollout: Rollout;
  /** Fingerprint of the bundle in a folder. @throws ServingError for one that cannot take part in a rollout. */
  readonly inspectBundle?: ((dir: string) => Promise<string>) | undefined;
}

/** What a field is that was left out. */
const leftOut = (value: string) => `Not given: ${value} for a new candidate; for the one there is it stays as it is`;

const startBody = z.strictObject({
  action: z.literal('start'),
  bundle: z.string().min(1).max(4_096).describe('folder of the bundle, on every gateway'),
  share: z
    .number()
    .min(0)
    .max(100)
    .optional()
    .describe(`share of the requests that it gets, in percent. ${leftOut('5')}`),
  by: z
    .enum(SHARED_BY)
    .optional()
    .describe(`what stays with one bundle. ${leftOut('session')}`),
  indexer: addressOrNone
    .optional()
    .describe(`host:port of an indexer of the bundle, to make side indexes; empty to make none. ${leftOut('empty')}`),
});
const actions = z.discriminatedUnion('action', [
  startBody,
  z.strictObject({ action: z.literal('promote') }),
  z.strictObject({ action: z.literal('rollback') }),
]);
type RolloutBody = z.output<typeof actions>;
const rolloutBody: BodySchema<RolloutBody> = { fields: actions, safeParse: (body) => actions.safeParse(body) };

export const ROLLOUT_URL = '/v1/rollout';
export const ROLLOUT_WORDS = ['start', 'promote', 'rollback'] as const;

export function addRolloutRoutes(app: FastifyInstance, { rollout, rollouts, inspectBundle }: RolloutRouteParts): void {
  const tags = ['operation'];
  const assertOn = () => {
    if (!rollouts || inspectBundle === undefined) {
      throw new ServingError('not_found', 'this gateway takes part in no rollouts (--rollouts)');
    }
    return inspectBundle;
  };
  app.get(ROLLOUT_URL, { schema: { summary: 'the rollout that is under way, with --rollouts', tags } }, async () => {
    assertOn();
    return statusBody(rollout.status);
  });
  app.post(ROLLOUT_URL, {
    schema: {
      body: rolloutBody,
      summary: 'starts a rollout, promotes its bundle or rolls back, with --rollouts',
      tags,
    },
    handler: async ({ body }: FastifyRequest<{ Body: RolloutBody }>) => {
      const inspect = assertOn();
      if (body.action === 'promote') await rollout.promote();
      else if (body.action === 'rollback') await rollout.rollBack();
      else {
        const { action: _, ...asked } = body;
        await rollout.start({ ...asked, fingerprint: await inspected(asked.bundle, inspect) });
      }
      return statusBody(rollout.status);
    },
  });
}

async function inspected(bundle: string, inspect: (dir: string) => Promise<string>): Promise<string> {
  try {
    return await inspect(bundle);
  } catch (cause) {
    const { message } = ServingError.from(cause);
    throw new ServingError('invalid_request', `bundle: ${message}`, { param: 'bundle', cause });
  }
}

const statusBody = ({ phase, stable, state, problem, workers, index }: RolloutStatus) => ({
  object: 'rollout',
  phase,
  stable: { fingerprint: stable },
  candidate: state === undefined ? null : { bundle: state.bundle, fingerprint: state.fingerprint },
  share: state?.share ?? 0,
  by: state?.by ?? null,
  problem: problem ?? null,
  workers: workers ?? null,
  index: index ?? null,
});
