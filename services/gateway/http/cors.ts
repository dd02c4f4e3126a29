/** CORS, for editors that run in a browser: off unless origins are listed. */
import cors from '@fastify/cors';
import type { FastifyInstance } from 'fastify';

/** Headers of answers that scripts of other origins may read. */
const EXPOSED = [
  'x-request-id',
  'retry-after',
  'x-llavacode-rag',
  'x-llavacode-suffix',
  'x-llavacode-ignored',
  'x-llavacode-limit',
];
/** Time for which a browser remembers what it was allowed, in seconds. */
const REMEMBERED_S = 600;

/** The route that the plugin adds, for OPTIONS of any URL. */
export const PREFLIGHT_URL = '*';

/** @param origins that may use the API, as browsers write them; none for no CORS at all. */
export function addCors(app: FastifyInstance, origins: readonly string[]): void {
  if (origins.length === 0) return;
  app.register(cors, {
    origin: [...origins],
    methods: ['GET', 'HEAD', 'POST', 'PUT', 'DELETE'],
    exposedHeaders: EXPOSED,
    maxAge: REMEMBERED_S,
    hideOptionsRoute: true,
  });
}
