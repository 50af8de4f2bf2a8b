//! Checks lines against docs/msgbus.v1.schema.json. It knows the keywords that the schema uses, and no others.

use serde_json::{Map, Value};

/// The schema of all lines.
#[derive(Clone)]
pub(super) struct Schema(Value);

impl Schema {
    pub(super) fn read() -> Self {
        Self(
            serde_json::from_str(include_str!("../../../../../docs/msgbus.v1.schema.json"))
                .unwrap(),
        )
    }

    /// Asserts that a line is valid by one of the definitions.
    #[track_caller]
    pub(super) fn check(&self, definition: &str, line: &Value) {
        if let Err(why) = self.validate(&self.0["$defs"][definition], line) {
            panic!("{line} is not valid: {why}");
        }
    }

    pub(super) fn allows(&self, definition: &str, line: &Value) -> bool {
        self.validate(&self.0["$defs"][definition], line).is_ok()
    }

    fn validate(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let Value::Object(schema) = schema else {
            assert_eq!(schema, &Value::Bool(true));
            return Ok(());
        };
        for (keyword, argument) in schema {
            self.apply(keyword, argument, schema, value)?;
        }
        Ok(())
    }

    fn apply(
        &self,
        keyword: &str,
        argument: &Value,
        schema: &Map<String, Value>,
        value: &Value,
    ) -> Result<(), String> {
        let is_valid = match keyword {
            "$ref" => {
                let name = argument.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                return self.validate(&self.0["$defs"][name], value);
            }
            "oneOf" => return self.one_of(argument, value),
            "properties" => return self.properties(argument, value),
            "additionalProperties" => return self.others(argument, schema, value),
            "items" => {
                let mut items = value.as_array().into_iter().flatten();
                return items.try_for_each(|item| self.validate(argument, item));
            }
            "type" => has_type(argument.as_str().unwrap(), value),
            "const" => argument == value,
            "enum" => argument.as_array().unwrap().contains(value),
            "required" => {
                let names = argument.as_array().unwrap();
                value.is_object()
                    && names.iter().all(|name| value.get(name.as_str().unwrap()).is_some())
            }
            "minimum" => value.as_f64().is_none_or(|number| number >= argument.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|number| number <= argument.as_f64().unwrap()),
            "minLength" => {
                value.as_str().is_none_or(|text| text.len() as u64 >= argument.as_u64().unwrap())
            }
            "maxLength" => {
                value.as_str().is_none_or(|text| text.len() as u64 <= argument.as_u64().unwrap())
            }
            _ => panic!("unknown keyword {keyword}"),
        };
        if is_valid { Ok(()) } else { Err(format!("{value} against {keyword} {argument}")) }
    }

    fn one_of(&self, schemas: &Value, value: &Value) -> Result<(), String> {
        let schemas = schemas.as_array().unwrap();
        let results: Vec<_> = schemas.iter().map(|schema| self.validate(schema, value)).collect();
        match results.iter().filter(|result| result.is_ok()).count() {
            1 => Ok(()),
            count => Err(format!("{count} of oneOf: {results:?}")),
        }
    }

    fn properties(&self, properties: &Value, value: &Value) -> Result<(), String> {
        for (name, schema) in properties.as_object().unwrap() {
            if let Some(property) = value.get(name) {
                self.validate(schema, property)?;
            }
        }
        Ok(())
    }

    fn others(
        &self,
        schema: &Value,
        whole: &Map<String, Value>,
        value: &Value,
    ) -> Result<(), String> {
        for (name, other) in value.as_object().into_iter().flatten() {
            if whole.get("properties").is_some_and(|known| known.get(name).is_some()) {
                continue;
            }
            if schema == &Value::Bool(false) {
                return Err(format!("unknown property {name}"));
            }
            self.validate(schema, other)?;
        }
        Ok(())
    }
}

fn has_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => panic!("unknown type {name}"),
    }
}
