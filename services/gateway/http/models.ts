/** `GET /v1/models`: the one model that this gateway serves. */
import type { FastifyInstance } from 'fastify';
import { ServingError } from '../../lib/process/errors.ts';

export interface ModelParts {
  /** Name of the model in the API. */
  readonly modelName: string;
  /** Tokens that a request may have, prompt and output together; undefined while no worker is there. */
  readonly capacity: () => number | undefined;
}

/** Time at which this process began to serve, in Unix seconds. */
export const STARTED = Math.floor(Date.now() / 1000);

export function addModelRoutes(app: FastifyInstance, { modelName, capacity }: ModelParts): void {
  const body = () => {
    const tokens = capacity();
    return {
      id: modelName,
      object: 'model',
      created: STARTED,
      owned_by: 'llavacode',
      ...(tokens !== undefined && { max_model_len: tokens }),
    };
  };
  app.get('/v1/models', { schema: { summary: 'the served model, as a list', tags: ['OpenAI'] } }, async () => ({
    object: 'list',
    data: [body()],
  }));
  const schema = { summary: 'the served model', tags: ['OpenAI'] };
  app.get<{ Params: { id: string } }>('/v1/models/:id', { schema }, async ({ params }) => {
    assertModel(params.id, modelName);
    return body();
  });
}

/** The repository that the name of the served model ends with (`model@REPO`); undefined where it names none. */
export const repositoryIn = (model: string, served: string): string | undefined =>
  model.startsWith(`${served}@`) ? model.slice(served.length + 1) : undefined;

/** @param asked may name a repository, too. @throws ServingError model_not_found */
export function assertModel(asked: string, served: string): void {
  if (asked === served || repositoryIn(asked, served) !== undefined) return;
  throw new ServingError('model_not_found', `model ${JSON.stringify(asked)} is not served here, ${served} is`, {
    param: 'model',
  });
}

/**
 * The model that is meant by a client that cannot be told its name, or is not expected to know it. The repository that
 * its name may end with stays.
 */
export function modelOrServed(asked: string | undefined, served: string): string | undefined {
  if (asked === undefined || asked.startsWith(served)) return asked;
  const at = asked.indexOf('@');
  return at < 0 ? undefined : served + asked.slice(at);
}
