/** The setting of who may use the gateway. */
import { file } from '../../lib/process/setting-types.ts';

export const TENANT_SETTINGS = {
  apiKeysFile: file.describe(
    'JSON file of the API keys that requests need (see deploy/SECURITY.md); no key is needed when empty',
  ),
};
