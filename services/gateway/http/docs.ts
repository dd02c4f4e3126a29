/**
 * The description of the API, `/docs` and `/docs/json`: OpenAPI, made of the schemas by which the routes read their
 * bodies. docs/openapi.json is a copy of it.
 */
import swagger from '@fastify/swagger';
import swaggerUi from '@fastify/swagger-ui';
import type { FastifyInstance, FastifySchema, RouteOptions } from 'fastify';
import { z } from 'zod';
import { BUILD_INFO } from '../../lib/process/build-info.ts';
import type { BodySchema } from './editor-body.ts';

const DOCS_URL = '/docs';

/** Whether a route belongs to the description. It is the same for everybody, and needs no key. */
export const isDocs = (url: string): boolean => url === DOCS_URL || url.startsWith(`${DOCS_URL}/`);

const ERROR = {
  type: 'object',
  properties: {
    error: {
      type: 'object',
      properties: {
        message: { type: 'string' },
        type: { enum: ['invalid_request_error', 'rate_limit_error', 'server_error'] },
        param: { type: ['string', 'null'] },
        code: { type: 'string' },
      },
    },
  },
};
/** Ollama's. */
const ERROR_TEXT = { type: 'object', properties: { error: { type: 'string' } } };

/** Must be called before the routes are added that it describes: those with tags. */
export function addDocs(app: FastifyInstance): void {
  app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'LlavaCode Serving',
        description: 'Code completion, by the APIs that editors speak.',
        version: BUILD_INFO.version,
      },
      components: {
        securitySchemes: {
          bearer: { type: 'http', scheme: 'bearer' },
          'x-api-key': { type: 'apiKey', in: 'header', name: 'x-api-key' },
          'api-key': { type: 'apiKey', in: 'header', name: 'api-key' },
        },
      },
      security: [{ bearer: [] }, { 'x-api-key': [] }, { 'api-key': [] }],
    },
    hideUntagged: true,
    transform: ({ schema, url, route }) => ({ schema: described(schema, route), url }),
  });
  app.register(swaggerUi, {
    routePrefix: DOCS_URL,
    staticCSP: true,
    // A gateway without TLS has no other scheme to upgrade to: its page would stay empty.
    transformStaticCSP: (policy) => policy.replace(/\s*upgrade-insecure-requests;/, ''),
  });
}

/** The schema of a route as JSON Schema. It exists for the description alone: zod reads the bodies. */
function described(schema: FastifySchema | undefined, { config }: RouteOptions): FastifySchema {
  const body = schema?.body as BodySchema<unknown> | undefined;
  const query = schema?.querystring as BodySchema<unknown> | undefined;
  const failure = config?.wordsFailure ? ERROR_TEXT : ERROR;
  return {
    ...schema,
    ...(body && { body: jsonSchemaOf(body.fields) }),
    ...(query && { querystring: jsonSchemaOf(query.fields) }),
    ...(config?.needsNoKey && { security: [] }),
    response: { 200: { description: 'the answer' }, '4XX': { ...failure, description: 'a refusal' } },
  };
}

function jsonSchemaOf(fields: z.ZodType): object {
  const { $schema: _, ...schema } = z.toJSONSchema(fields, { io: 'input', unrepresentable: 'any' });
  return schema;
}
